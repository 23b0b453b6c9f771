"""Who calls, and who answers: every way of pretending is refused."""

from __future__ import annotations

import time

import grpc
import grpc.aio
import pytest

from protocols.errors import PeerUnreachableError, UnauthenticatedError
from swarm.access import Gate
from swarm.rpc import ChannelPool, auth, tls
from swarm.rpc.auth import Authenticator, credential
from swarm.rpc.dialling import Connection
from tests.swarm.rpc.parts import CALLER, ECHO, SERVER, STRANGER, TALK, Running, error_of, running

HOUR_S = 3_600.0


def raw_channel(there: Running) -> grpc.aio.Channel:
    """gRPC without our pool: what an attacker would use."""
    options = [("grpc.ssl_target_name_override", tls.NAME)]
    return grpc.aio.secure_channel(there.address, grpc.ssl_channel_credentials(there.certificate.cert_pem), options=options)


async def refusal(there: Running, metadata: tuple[tuple[str, bytes], ...], *, is_stream: bool) -> grpc.aio.AioRpcError:
    async with raw_channel(there) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if is_stream:
                call = channel.stream_stream(TALK.path)(metadata=metadata)
                await call.read()
            else:
                await channel.unary_unary(ECHO.path)(b"x", metadata=metadata, timeout=60)
    return caught.value


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    "kind", ["none", "garbage", "another server's", "expired", "too long a life", "tampered", "another's signature"]
)
async def test_a_caller_without_a_good_credential_reaches_no_handler(kind: str, is_stream: bool) -> None:
    async with running() as there:
        mine, now_s = tls.fingerprint(there.certificate.der), time.time()
        good = credential(CALLER, mine, now_s + 60)
        blobs = {
            "garbage": b"\0" * len(good),
            "another server's": credential(CALLER, tls.fingerprint(tls.make(STRANGER).der), now_s + 60),
            "expired": credential(CALLER, mine, now_s - 1),
            "too long a life": credential(CALLER, mine, now_s + 2 * HOUR_S),
            "tampered": good[:-1] + bytes([good[-1] ^ 1]),
            "another's signature": good[:-64] + credential(STRANGER, mine, now_s + 60)[-64:],
        }
        metadata = () if kind == "none" else ((auth.METADATA_KEY, blobs[kind]),)
        error = await refusal(there, metadata, is_stream=is_stream)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert dict(error.trailing_metadata())["murmuration-code"] == "unauthenticated"
        assert there.handlers.num_calls == 0 and there.handlers.seen.empty()
        good_reply = await raw_call(there, good)
        assert good_reply.endswith(b"x")  # otherwise everything would be refused, and this test show nothing


async def raw_call(there: Running, blob: bytes) -> bytes:
    async with raw_channel(there) as channel:
        reply: bytes = await channel.unary_unary(ECHO.path)(b"x", metadata=((auth.METADATA_KEY, blob),), timeout=60)
        return reply


def test_a_credential_is_verified_once_and_expires_all_the_same() -> None:
    here = Authenticator(b"f" * 32)
    blob = credential(CALLER, b"f" * 32, 100.0)
    assert here.caller(blob, 50.0) == here.caller(blob, 99.0) == CALLER.peer_id
    with pytest.raises(UnauthenticatedError, match="clocks"):
        here.caller(blob, 101.0)


async def test_the_handler_learns_who_calls() -> None:
    async with running() as there:
        assert await (await there.channel()).unary(ECHO, b"!") == CALLER.peer_id.encode() + b"!"


async def test_another_peer_at_the_right_address_is_named_and_gets_no_call() -> None:
    async with running(identity=STRANGER) as there:
        for certificate in (b"", tls.make(SERVER).der):
            text = await error_of(there.pool.channel(SERVER.peer_id, (there.address,), certificate), UnauthenticatedError)
            assert STRANGER.peer_id[-6:] in text and there.address in text
        assert there.handlers.num_calls == 0


async def test_a_certificate_of_another_peer_is_not_pinned() -> None:
    async with running() as there:
        await error_of(there.pool.channel(SERVER.peer_id, (there.address,), tls.make(STRANGER).der), UnauthenticatedError)


async def test_a_certificate_with_a_stolen_proof_is_refused() -> None:
    """The proof covers the TLS key: copying it into another certificate must not work."""
    mine, other = tls.make(SERVER), tls.make(STRANGER)
    start = mine.der.index(bytes.fromhex("30680424"))
    proof = mine.der[start : start + 106]
    at = other.der.index(bytes.fromhex("30680424"))
    with pytest.raises(UnauthenticatedError):
        tls.owner(other.der[:at] + proof + other.der[at + 106 :])
    assert tls.owner(mine.der) == SERVER.peer_id


@pytest.mark.parametrize("der", [b"", b"x", b"\x30\x82" + b"\xff" * 100, b"\0" * 5_000])
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(UnauthenticatedError):
        tls.owner(der)


def test_a_certificate_survives_the_disk_and_no_other_key_fits_it() -> None:
    made, other = tls.make(SERVER), tls.make(SERVER)
    assert tls.parse(made.key_pem + made.cert_pem) == made
    with pytest.raises(UnauthenticatedError):
        tls.parse(other.key_pem + made.cert_pem)
    with pytest.raises(UnauthenticatedError):
        tls.parse(b"")


async def test_a_restart_with_a_new_certificate_is_recovered_by_asking_for_it() -> None:
    async with running() as before:
        channel = await before.channel()
        await channel.unary(ECHO, b"1")
        await before.server.stop()
        port = int(before.address.rpartition(":")[2])
        async with running(port=port) as after:
            assert after.certificate != before.certificate
            assert await channel.unary(ECHO, b"2") == CALLER.peer_id.encode() + b"2"
            assert after.handlers.num_calls == 1
            stream = await channel.stream(TALK)
            await stream.send(b"3")
            assert await stream.receive() == b"3"
            stream.cancel()


async def test_the_first_address_that_answers_is_taken() -> None:
    async with running() as there, running(identity=STRANGER) as other:
        pool = ChannelPool(CALLER)
        channel = await pool.channel(SERVER.peer_id, ("127.0.0.1:1", other.address, there.address))
        assert await channel.unary(ECHO, b"") == CALLER.peer_id.encode()
        await pool.close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "unix:/tmp/x:1", "dns://x/y:1", "host", "host:0", "host:99999", ""])
async def test_an_address_that_leads_nowhere_is_a_typed_error(address: str) -> None:
    pool = ChannelPool(CALLER)
    await error_of(pool.channel(SERVER.peer_id, (address,)), PeerUnreachableError)
    await pool.close()


@pytest.mark.parametrize("set_by_s", [HOUR_S, -HOUR_S, auth.RENEW_S + 1.0])
async def test_a_caller_whose_clock_was_set_right_is_believed_at_once(set_by_s: float) -> None:
    """On a connection that lives; before, only after RENEW_S."""
    async with running() as there:
        now = [time.time() - set_by_s]
        caller = Connection(CALLER, there.address, there.certificate.der, Gate(), lambda: now[0])
        server = Authenticator(tls.fingerprint(there.certificate.der))
        ((_, before),) = caller.metadata()
        assert caller.metadata() == ((auth.METADATA_KEY, before),)
        now[0] += set_by_s
        ((_, after),) = caller.metadata()
        assert after != before and server.caller(after, now[0]) == CALLER.peer_id
        await caller.channel.close()
