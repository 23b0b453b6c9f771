"""An outsider gets nothing from a private swarm, a member everything.

The outsider knows addresses and the name, and tries the DHT and every call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, P2PHandlerError, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import read_pbmsg_safe, write_pbmsg
from hivemind.proto import dht_pb2, p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

from node.cli.flags.asking import open_model
from node.cli.flags.command_options import ClientOptions
from protocols import services
from protocols.errors import ModelNotFoundError, PeerUnreachableError, PrivateSwarmError, SwarmError
from protocols.identity import Identity, from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from protocols.swarm_key import SwarmKey
from swarm.access import Gate
from swarm.dht import guard
from swarm.dht.address import PeerAddress
from swarm.dht.node import Dht
from swarm.meeting import keyring
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entry
from swarm.meeting.invitation import Invitation
from swarm.meeting.known_peers import file_of
from swarm.peer.config import PeerConfig
from swarm.peer.keys import Keys
from swarm.peer.peer import Peer
from swarm.peer.thin_peer import ThinPeer
from swarm.rpc import Call, ChannelPool, Stream, auth, status, tls
from tests.hosting import hosted

KEY, OTHER = SwarmKey(b"k" * 32), SwarmKey(b"o" * 32)
NAME = "attic"
MODEL = ModelId("toy", "ab" * 32)


def config(folder: Path, key: SwarmKey | None = KEY, *bootstrap: str, name: str = NAME, **others: Any) -> PeerConfig:
    return PeerConfig(data_dir=folder, swarm=name, bootstrap=bootstrap, entry=Entry(key=key), **others)


def client(key: SwarmKey | None, *bootstrap: str, **others: Any) -> Peer:
    return Peer(PeerConfig(client_mode=True, listen=None, swarm=NAME, bootstrap=bootstrap, entry=Entry(key=key), **others))


def record_of(peer: Peer) -> PeerRecord:
    served = hosted(MODEL, Span(0, 2), 2)
    return PeerRecord(
        peer=peer.peer_id, addresses=tuple(peer.addresses), certificate=peer.certificate, state="serving", hosted=served
    )


# --- the DHT


@contextlib.asynccontextmanager
async def member(key: SwarmKey | None, *, identity: Identity | None = None) -> AsyncIterator[Dht]:
    keys = Keys(identity=identity or from_seed(os.urandom(32)), certificate=None, path=None)
    dht = Dht(keys.identity, keys.file, ("127.0.0.1", 0), gate=Gate(key))
    await dht.start()
    try:
        yield dht
    finally:
        await dht.stop()


def address_of(dht: Dht) -> PeerAddress:
    return PeerAddress.parse(f"{dht.addresses[0]}/p2p/{dht._identity.peer_id}")


@contextlib.asynccontextmanager
async def untrusted_node() -> AsyncIterator[DHTNode]:
    """Plain hivemind, without any of our checks."""
    node = await DHTNode.create(
        host_maddrs=["/ip4/127.0.0.1/tcp/0"], strict=False, nat_port_map=False, cache_locally=False, cache_nearest=0
    )
    try:
        yield node
    finally:
        await node.shutdown()


async def attempts(node: DHTNode, target: Dht, key: str) -> dict[str, bool]:
    """Which of ping, store and find of a plain DHT node the target answers."""
    address = address_of(target)
    peer, near = PeerID.from_base58(address.peer), DHTID.generate(key)
    await node.p2p._client.connect(peer, [Multiaddr(address.transport)])
    found = await node.protocol.call_find(peer, [near])
    stored = await node.protocol.call_store(peer, [near], [b"junk"], [time.time() + 60.0])
    return {
        "ping": await node.protocol.call_ping(peer) is not None,
        "store": stored is not None,
        "find": found is not None,
    }


async def test_a_plain_dht_node_is_refused_ping_store_and_find() -> None:
    """The very same calls are answered by a node of a public swarm, so it is the key that refuses them."""
    async with member(None) as public, member(KEY) as first, member(KEY) as second, untrusted_node() as outsider:
        await second.join(address_of(first))
        assert await second.store("said", b"payload", time.time() + 60)
        assert set(await first.get(["said"])) == {"said"} and (await first.get(["said"]))["said"], "members find it"
        assert await attempts(outsider, public, "said") == {"ping": True, "store": True, "find": True}
        for private in (first, second):
            assert await attempts(outsider, private, "said") == {"ping": False, "store": False, "find": False}
            assert outsider.peer_id not in private._running.routing_table
            assert private.num_neighbours == 1, "only the other member"


async def test_swarms_with_another_key_or_none_never_meet_in_the_dht() -> None:
    async with member(KEY) as ours, member(OTHER) as theirs, member(None) as public:
        for asking, asked, why in (
            (public, ours, "this swarm is private"),
            (theirs, ours, "its key is another than yours"),
            (ours, theirs, "its key is another than yours"),
            (ours, public, "it is in a public swarm"),
        ):
            with pytest.raises(PrivateSwarmError, match=why):  # a timeout would be a PeerUnreachableError
                await asking.join(address_of(asked))
        assert [dht.num_neighbours for dht in (ours, theirs, public)] == [0, 0, 0]


async def test_a_proof_that_was_seen_serves_nobody_else() -> None:
    """A member's proof is for one pair of PeerIDs, which p2pd itself proves, and for one direction."""
    async with member(KEY) as first, member(KEY) as second, untrusted_node() as outsider:
        me, you, thief = address_of(first).peer, address_of(second).peer, outsider.peer_id.to_base58()
        seen = {
            "a member's request": second._guard.prove(guard._REQUEST, me),
            "a member's answer": second._guard.prove(guard._ANSWER, me),
            "the target's own answer": first._guard.prove(guard._ANSWER, you),
            "what it says to an outsider": first._guard.prove(guard._REQUEST, thief),  # type: ignore[arg-type]
        }
        peer = PeerID.from_base58(me)
        await outsider.p2p._client.connect(peer, [Multiaddr(address_of(first).transport)])
        stub = type(outsider.protocol).__mro__[1].get_stub.__func__(type(outsider.protocol), outsider.p2p, peer)
        for what, proof in seen.items():
            request = dht_pb2.PingRequest()
            request.auth.signature = proof
            with pytest.raises(P2PHandlerError, match="PrivateSwarmError"):
                await stub.rpc_ping(request, timeout=60)
                pytest.fail(what)


async def whereabouts(asked: Dht, wanted: Dht, within_s: float = 60.0) -> str:
    """What p2pd's own DHT (go-libp2p's) tells an outsider about where another member is: "" or an error, after `within_s`."""
    outsider = await P2P.create(host_maddrs=["/ip4/127.0.0.1/tcp/0"], dht_mode="client")
    try:
        await outsider._client.connect(PeerID.from_base58(address_of(asked).peer), [Multiaddr(address_of(asked).transport)])
        find = p2pd_pb2.DHTRequest(
            type=p2pd_pb2.DHTRequest.FIND_PEER, peer=PeerID.from_base58(address_of(wanted).peer).to_bytes()
        )
        deadline = time.monotonic() + within_s
        while True:  # connected peers exchange what they can do in the background
            reader, writer = await outsider._client.control.daemon_connector.open_connection()
            await write_pbmsg(writer, p2pd_pb2.Request(type=p2pd_pb2.Request.DHT, dht=find))
            answer = p2pd_pb2.Response()
            await read_pbmsg_safe(reader, answer)
            writer.close()
            if answer.type == p2pd_pb2.Response.OK or time.monotonic() > deadline:
                return str(answer.error.msg)
            await asyncio.sleep(0.2)
    finally:
        await outsider.shutdown()


async def test_p2pd_itself_tells_an_outsider_of_no_other_member_and_members_tell_each_other() -> None:
    """hivemind needs go-libp2p's DHT to find addresses, and that DHT answers any peer: in a private swarm it is off."""
    async with member(None) as one, member(None) as two:
        await two.join(address_of(one))
        assert await whereabouts(one, two) == "", "in a public swarm any peer is told"
    async with member(KEY) as first, member(KEY) as second, member(KEY) as third:
        await second.join(address_of(first))
        await third.join(address_of(first))
        deadline = time.monotonic() + 60
        while (third.num_neighbours, second.num_neighbours) != (2, 2) and time.monotonic() < deadline:
            await third.look_around()
        assert (third.num_neighbours, second.num_neighbours) == (2, 2), "each met the other, whom only the first knew"
        assert await whereabouts(first, second, 5.0) != ""


# --- gRPC


class Counting:
    """Handlers of everything that a node offers; none may run for an outsider."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def table(self) -> dict[str, Any]:
        own = {services.HELLO, services.DIAL_BACK, services.DIRECTORY}
        return {method.name: self._handler(method) for method in services.ALL if method not in own}

    def _handler(self, method: services.Method) -> Any:
        async def unary(request: bytes, call: Call) -> bytes:
            self.calls.append(method.name)
            return b"done"

        async def streaming(stream: Stream, call: Call) -> None:
            self.calls.append(method.name)

        return streaming if method.streaming else unary


@contextlib.asynccontextmanager
async def raw_channel(peer: Peer) -> AsyncIterator[grpc.aio.Channel]:
    """A connection as an attacker makes it: whatever certificate is shown is pinned, and nothing of it is checked."""
    shown = await tls.fetch(peer.addresses[0])
    channel = grpc.aio.secure_channel(
        peer.addresses[0],
        grpc.ssl_channel_credentials(tls.pem(shown)),
        options=[("grpc.ssl_target_name_override", tls.NAME), ("grpc.use_local_subchannel_pool", 1)],  # a connection of its own
    )
    try:
        yield channel
    finally:
        await channel.close()


async def code_of(channel: grpc.aio.Channel, method: services.Method, credential: bytes | None) -> str:
    """Our error's code that a call ends with; "done" if it does not fail."""
    metadata = () if credential is None else ((auth.METADATA_KEY, credential),)
    try:
        if method.streaming:
            call = channel.stream_stream(method.path)(metadata=metadata, timeout=60)
            await call.write(b"x")
            await call.done_writing()
            await call.read()
            if await call.code() is not grpc.StatusCode.OK:
                return dict(await call.trailing_metadata()).get(status.CODE_KEY, "?")
        else:
            await channel.unary_unary(method.path)(b"x", metadata=metadata, timeout=60)
    except grpc.aio.AioRpcError as error:
        if status.LOST_STATUS in (
            error.details() or ""
        ):  # it was refused before our message was written; which word, gRPC forgot
            return await code_of(channel, method, credential)
        return dict(error.trailing_metadata() or ()).get(status.CODE_KEY, f"? {error}")
    return "done"


async def test_every_call_of_an_outsider_is_refused_before_its_handler_runs(tmp_path: Path) -> None:
    outsider = from_seed(os.urandom(32))
    counting = Counting()
    async with Peer(config(tmp_path), counting.table()) as node:
        mark, end = tls.fingerprint(node.certificate), time.time() + 60
        mine = auth.credential(outsider, mark, end)
        theirs = auth.credential(from_seed(b"m" * 32), mark, end, KEY)
        forged = {
            "no credential": (None, "unauthenticated"),
            "no key": (mine, "private_swarm"),
            "another key": (auth.credential(outsider, mark, end, OTHER), "private_swarm"),
            "a proof of zeros": (mine + bytes(32), "private_swarm"),
            "a member's proof behind my name": (mine + theirs[-32:], "private_swarm"),
            "made for another server": (auth.credential(outsider, b"s" * 32, end, KEY), "unauthenticated"),
        }
        for method in services.ALL:
            async with raw_channel(node) as channel:  # a node closes a connection on which it has refused often
                for what, (credential, expected) in forged.items():
                    assert await code_of(channel, method, credential) == expected, (method.name, what)
        assert counting.calls == []
        async with raw_channel(node) as channel:
            assert await code_of(channel, services.MANIFEST, theirs) == "done" and counting.calls == ["manifest"]


async def test_a_member_sends_nothing_to_who_does_not_prove_the_key(tmp_path: Path) -> None:
    """The certificate is looked at first: no call, no credential, no proof reaches the impostor, and a copied proof does not help it."""
    async with (
        Peer(config(tmp_path)) as node,
        Peer(config(tmp_path, None, name=NAME)) as public,
        Peer(config(tmp_path, OTHER)) as other,
    ):
        pool = ChannelPool(from_seed(os.urandom(32)), Gate(KEY))
        try:
            assert (await pool.channel(node.peer_id, node.addresses)).is_connected
            for impostor, why in ((public, "does not prove its key"), (other, "another than yours")):
                for certificate in (b"", impostor.certificate):
                    with pytest.raises(PrivateSwarmError, match=why):
                        await pool.channel(impostor.peer_id, impostor.addresses, certificate)
        finally:
            await pool.close()
        outside = ChannelPool(from_seed(os.urandom(32)), Gate())
        with pytest.raises(PrivateSwarmError, match="ask a member for an invitation"):
            await outside.channel(node.peer_id, node.addresses)
        await outside.close()


# --- whole peers


async def test_a_public_invitation_opens_no_private_swarm_for_a_command_with_a_kept_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate --join` of a public swarm that has the name of a private one whose key is kept here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no test asks the network
    user = tmp_path / "user"
    keyring.keep(user, NAME, KEY)

    def opened(asked: ClientOptions) -> None:
        with open_model(asked.asking("toy")):
            pytest.fail("no node serves it")

    async with Peer(config(tmp_path)) as node:
        word = Invitation(swarm=NAME, peers=node.multiaddrs).text()
        with pytest.raises(PrivateSwarmError, match="ask a member for an invitation"):
            await asyncio.to_thread(opened, ClientOptions(max_new_tokens=1, join=word, data_dir=user, patience=0.0))
        with pytest.raises(ModelNotFoundError):  # the kept key, if the user says no word of an invitation
            mine = ClientOptions(max_new_tokens=1, swarm=NAME, peer=list(node.multiaddrs), data_dir=user, patience=0.0)
            await asyncio.to_thread(opened, mine)


async def test_members_find_each_other_and_outsiders_learn_why_not(tmp_path: Path) -> None:
    """Full and thin clients, with the key, without and with another one; by a named address, a remembered one, and dial-back."""
    async with Peer(config(tmp_path)) as first, Peer(config(tmp_path, KEY, *first.multiaddrs)) as second:
        await second.joined()
        await first.directory.announce(lambda: record_of(first), [MODEL.name])
        assert [one.peer for one in (await second.directory.snapshot(MODEL.name)).peers] == [first.peer_id]
        assert await second.verify() is True, "dialled back"
        async with client(KEY, *first.multiaddrs) as full, ThinPeer(first.multiaddrs, NAME, entry=Entry(key=KEY)) as thin:
            for asking in (full, thin):
                assert [one.peer for one in (await asking.directory.snapshot(MODEL.name)).peers] == [first.peer_id]
        for key, why in ((None, "ask a member for an invitation"), (OTHER, "another than yours")):
            with pytest.raises(PrivateSwarmError, match=why):  # a timeout would be a PeerUnreachableError
                async with client(key, *first.multiaddrs):
                    pass
            with pytest.raises(PrivateSwarmError, match=why):
                async with ThinPeer(first.multiaddrs, NAME, entry=Entry(key=key)):
                    pass
        file = file_of(tmp_path, NAME)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"{time.time():.0f} {address}\n" for address in first.multiaddrs))
        with pytest.raises(PeerUnreachableError, match="this swarm is private"):
            async with ThinPeer((), NAME, FindConfig(known_peers=file)):
                pass


async def test_one_given_peer_that_refuses_costs_only_itself(tmp_path: Path) -> None:
    """A liar among the named peers says `private`; the honest one is joined."""
    async with Peer(config(tmp_path, OTHER)) as liar, Peer(config(tmp_path, None)) as honest:
        both = (*liar.multiaddrs, *honest.multiaddrs)
        async with client(None, *both) as full, ThinPeer(both, NAME) as thin:
            assert full.num_neighbours == 1
            assert (await thin.hello(honest.peer_id, honest.addresses)).swarm == NAME
            with pytest.raises(SwarmError):
                await thin.hello(liar.peer_id, liar.addresses)
