"""A message stream: order, ends, and a hostile far side.

The far side sends nonsense or reads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import torch

from protocols import services
from protocols.errors import BadRequestError, PeerUnreachableError, SwarmError
from protocols.ids import SessionId
from protocols.inference import Close, Expect, Message
from swarm.rpc import tls
from swarm.rpc.call import Call
from swarm.rpc.pool import ChannelPool
from swarm.rpc.server import RpcServer
from swarm.rpc.stream import Stream
from swarm.streams import message_stream as module
from swarm.streams.inbox import weight
from swarm.streams.message_stream import MessageStream, MessageStreamLimits
from tests.swarm.inference.probe import step_of
from tests.swarm.inference.toy import new_identity, until

SESSION = SessionId(bytes(16))


def word(number: int) -> Expect:
    return Expect(session=SESSION, epoch=0, step=number)


class Ends:
    """The calls that a message stream made to its owner."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.lost: list[SwarmError | None] = []
        self.refuse: SwarmError | None = None

    async def on_message(self, wire: MessageStream, message: Message) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.heard.append(message)

    async def on_lost(self, wire: MessageStream, cause: SwarmError | None) -> None:
        self.lost.append(cause)


class Pair:
    """Both ends of one stream; the test controls the serving side."""

    def __init__(self) -> None:
        self.identity, self.pool = new_identity(), ChannelPool(new_identity())
        self.serve: Callable[[Stream], Awaitable[None]] = self._serve_wire
        self.near, self.far = Ends(), Ends()
        self.far_wire: MessageStream | None = None
        self.limits = MessageStreamLimits()
        self._is_over = asyncio.Event()

    async def read_nothing(self, stream: Stream) -> None:
        """A way to `serve`: the stream stays open until the test is over."""
        await self._is_over.wait()

    async def _serve_wire(self, stream: Stream) -> None:
        self.far_wire = MessageStream(stream, self.far.on_message, self.far.on_lost)
        refusal = await self.far_wire.run()
        if refusal is not None:
            raise refusal

    async def start(self) -> MessageStream:
        async def handle(stream: Stream, call: Call) -> None:
            await self.serve(stream)

        certificate = tls.make(self.identity)
        self.server = RpcServer(self.identity, certificate, {services.SESSION.name: handle})
        address = f"127.0.0.1:{await self.server.start()}"
        channel = await self.pool.channel(self.identity.peer_id, (address,), certificate.der)
        stream = await channel.stream(services.SESSION)
        return MessageStream(stream, self.near.on_message, self.near.on_lost, has_dialled=True, limits=self.limits).start()

    async def stop(self) -> None:
        self._is_over.set()
        await self.pool.close()
        await self.server.stop(0)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair()
    yield pair
    await pair.stop()


async def test_messages_come_in_order_both_ways_iterators_among_them(pair: Pair) -> None:
    wire = await pair.start()
    wire.post(word(0))
    wire.post(word(number) for number in range(1, 50))
    wire.post(word(50))
    await until(lambda: len(pair.far.heard) == 51)
    assert pair.far_wire is not None
    pair.far_wire.post(word(7))
    await until(lambda: pair.near.heard == [word(7)])
    assert pair.far.heard == [word(number) for number in range(51)]
    await wire.close()


async def test_steps_and_words_arrive_in_the_order_in_which_they_were_posted(pair: Pair) -> None:
    wire = await pair.start()
    messages = [step_of(0), step_of(1), word(2), step_of(3)]
    for message in messages:
        wire.post(message)
    await until(lambda: len(pair.far.heard) == 4)
    assert [message.encode() for message in pair.far.heard] == [message.encode() for message in messages]
    await until(lambda: wire._outbox_bytes == 0)
    await wire.close()


async def test_an_iterator_is_asked_only_as_its_messages_are_sent(pair: Pair) -> None:
    hold = asyncio.Event()
    asked = 0

    async def read_nothing(stream: Stream) -> None:
        await hold.wait()

    def many() -> Iterator[Message]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield Close(session=SESSION) if asked == 1 else _large()

    pair.serve = read_nothing
    wire = await pair.start()
    wire.post(many())
    await until(lambda: asked >= 1)
    await asyncio.sleep(0.2)  # as long as it likes: the far side does not read
    assert asked < 50
    hold.set()
    await wire.close()


def _large() -> Message:
    return step_of(0, torch.zeros(50_000, 4))


async def test_the_last_message_arrives_and_the_end_is_no_loss(pair: Pair) -> None:
    wire = await pair.start()
    wire.post(Close(session=SESSION))
    wire.end()
    wire.post(word(1))  # too late
    await wire.ended()
    await until(lambda: pair.far.lost == [None])
    assert pair.far.heard == [Close(session=SESSION)] and pair.near.lost == []


async def test_the_far_side_s_end_is_told_once_without_a_cause(pair: Pair) -> None:
    wire = await pair.start()
    await until(lambda: pair.far_wire is not None)
    assert pair.far_wire is not None
    pair.far_wire.end()
    await until(lambda: pair.near.lost == [None])
    assert not wire.is_open


async def test_a_refusal_reaches_the_caller_and_nonsense_is_the_callee_s_fault(pair: Pair) -> None:
    pair.far.refuse = BadRequestError("not here")
    wire = await pair.start()
    wire.post(word(0))
    await until(lambda: bool(pair.near.lost))
    assert isinstance(pair.near.lost[0], BadRequestError) and "not here" in str(pair.near.lost[0])


async def test_nonsense_from_a_peer_that_we_chose_counts_as_its_loss(pair: Pair) -> None:
    """A FrameError would say that the request was wrong, and no other peer would be tried."""

    async def babble(stream: Stream) -> None:
        await stream.send(b"babble")
        await stream.receive()

    pair.serve = babble
    await pair.start()
    await until(lambda: bool(pair.near.lost))
    (cause,) = pair.near.lost
    assert isinstance(cause, PeerUnreachableError) and cause.try_another_peer and "no message" in str(cause)


async def test_a_peer_that_does_not_read_is_given_up(pair: Pair) -> None:
    pair.limits = MessageStreamLimits(max_outbox=20)

    pair.serve = pair.read_nothing
    wire = await pair.start()
    for _ in range(60):
        wire.post(_large())
    await until(lambda: bool(pair.near.lost))
    assert "does not read" in str(pair.near.lost[0]) and not wire.is_open


async def test_a_few_large_messages_are_enough_to_give_up_a_peer_that_does_not_read(pair: Pair) -> None:
    """Else 256 replies of 64 MB each, asked for by a client that reads none, would be 16 GB."""
    pair.serve = pair.read_nothing
    wire = await pair.start()
    fits = module.MAX_OUTBOX_BYTES // weight(_large())
    for _ in range(fits - 1):
        wire.post(_large())
    assert not wire._alarm.is_set()
    for _ in range(20):
        wire.post(_large())
    await until(lambda: bool(pair.near.lost))
    assert "does not read" in str(pair.near.lost[0]) and not wire.is_open


async def test_an_end_does_not_wait_forever_for_a_peer_that_does_not_read(pair: Pair) -> None:
    pair.limits = MessageStreamLimits(linger_s=0.1)

    pair.serve = pair.read_nothing
    wire = await pair.start()
    for _ in range(15):
        wire.post(_large())
    wire.end()
    async with asyncio.timeout(60):
        await wire.ended()
    assert pair.near.lost == []


async def test_a_handler_whose_caller_vanishes_tells_its_owner(pair: Pair) -> None:
    wire = await pair.start()
    wire.post(word(0))
    await until(lambda: len(pair.far.heard) == 1)
    await pair.pool.close()
    await until(lambda: bool(pair.far.lost) and bool(pair.near.lost))
    assert len(pair.far.lost) == 1
