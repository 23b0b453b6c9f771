"""Errors of a pass name the hop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from protocols import training
from protocols.errors import DeadlineError, OverloadedError, PeerUnreachableError, UnauthenticatedError, VersionMismatchError
from protocols.identity import from_seed
from protocols.parts_of_units import HEAD, Part
from protocols.receipts import Receipt
from protocols.route import Hop
from protocols.services import TRAIN
from protocols.tensors import WireTensor
from protocols.training import Pass, PassFailed, Result
from protocols.units import Blocks
from swarm.rpc import Call, ChannelPool, RpcServer, Stream, tls
from swarm.training.chain import PassError, parts_of_hop, train
from tests.protocols.samples import MODEL

CALLER, FIRST, SECOND = (from_seed(bytes([number]) * 32) for number in (7, 8, 9))
CERTIFICATE = tls.make(FIRST)
IDS = WireTensor("int32", (1, 2), "none", bytes(8))
Answer = Callable[[Stream], Awaitable[None]]


@contextlib.asynccontextmanager
async def called(answer: Answer) -> AsyncIterator[tuple[ChannelPool, Pass]]:
    """The connections of a caller, and a pass through a first hop that answers so and a second one that is never called."""

    async def serve(stream: Stream, call: Call) -> None:
        await answer(stream)

    server, pool = RpcServer(FIRST, CERTIFICATE, {TRAIN.name: serve}), ChannelPool(CALLER)
    try:
        port = await server.start()
        first = Hop(FIRST.peer_id, (f"127.0.0.1:{port}",), CERTIFICATE.der, Blocks(0, 2))
        second = Hop(SECOND.peer_id, ("127.0.0.1:9",), b"", Blocks(2, 4))
        sent = Pass(run=MODEL, version=0, index=1, route=(first, second), payload=IDS, labels=IDS, num_targets=2, budget_ms=9_000)
        yield pool, sent
    finally:
        await pool.close()
        await server.stop()


async def error_of(pool: ChannelPool, sent: Pass) -> PassError:
    with pytest.raises(PassError) as caught:
        await train(pool, sent)
    return caught.value


async def test_a_hop_that_cannot_be_reached_is_named() -> None:
    async with called(_never) as (pool, sent):
        gone = dataclasses.replace(sent.route[0], addresses=("127.0.0.1:9",))
        error = await error_of(pool, dataclasses.replace(sent, route=(gone, sent.route[1])))
    assert (error.hop, error.peer, type(error.cause)) == (0, FIRST.peer_id, PeerUnreachableError)


async def test_another_peer_at_the_hop_s_address_is_named_as_that_hop() -> None:
    async with called(_never) as (pool, sent):
        other = dataclasses.replace(sent.route[0], peer=SECOND.peer_id)
        error = await error_of(pool, dataclasses.replace(sent, route=(other, sent.route[1])))
    assert (error.hop, error.peer, type(error.cause)) == (0, SECOND.peer_id, UnauthenticatedError)


async def test_a_refusal_keeps_its_type_and_the_hop_that_said_it() -> None:
    async def refuse(stream: Stream) -> None:
        raise OverloadedError("64 passes are in hand here")

    async def pass_on(stream: Stream) -> None:
        await stream.receive()
        await stream.send(PassFailed(hop=1, code="version_mismatch", message="block 2 has version 5 here").encode())

    async with called(refuse) as (pool, sent):
        error = await error_of(pool, sent)
        assert (error.hop, type(error.cause)) == (0, OverloadedError) and "64 passes" in str(error)
    async with called(pass_on) as (pool, sent):
        error = await error_of(pool, sent)
    assert (error.hop, error.peer, type(error.cause)) == (1, SECOND.peer_id, VersionMismatchError)
    assert error.message == PassFailed(hop=1, code="version_mismatch", message="block 2 has version 5 here")


async def test_a_hop_that_is_silent_ends_at_the_budget() -> None:
    async with called(_never) as (pool, sent):
        error = await error_of(pool, dataclasses.replace(sent, budget_ms=300))
    assert (error.hop, type(error.cause)) == (0, DeadlineError)


async def test_a_hop_that_breaks_off_is_named() -> None:
    async def end(stream: Stream) -> None:
        await stream.receive()

    async with called(end) as (pool, sent):
        assert (await error_of(pool, sent)).hop == 0


async def test_a_caller_that_is_cancelled_cancels_the_call() -> None:
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def wait(stream: Stream) -> None:
        await stream.receive()
        seen.put_nowait("pass")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.put_nowait("cancelled")
            raise

    async with called(wait) as (pool, sent), asyncio.timeout(60):
        task = asyncio.create_task(train(pool, sent))
        assert await seen.get() == "pass"
        task.cancel()
        assert await seen.get() == "cancelled"
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_result_of_all_hops_is_what_the_caller_gets() -> None:
    receipts = (Receipt(peer=FIRST.peer_id, added=(Part.block(0),)), Receipt(peer=SECOND.peer_id, held=(Part.block(3), HEAD)))
    got: list[training.Message] = []

    async def answer(stream: Stream) -> None:
        data = await stream.receive()
        assert data is not None
        got.append(training.parse(data))
        await stream.send(Result(loss_sum=2.5, receipts=receipts).encode())

    async with called(answer) as (pool, sent):
        assert await train(pool, sent) == Result(loss_sum=2.5, receipts=receipts)
    assert got == [sent]
    assert parts_of_hop(sent, 1) == {Part.block(2), Part.block(3), HEAD}


async def _never(stream: Stream) -> None:
    await asyncio.Event().wait()
