"""A pass through a route, from the caller's side.

A trainer calls `train`; a hop calls its next hop in the same way, so the answer to the trainer is the answer of the whole route. Whatever
fails below is raised as a PassError that names the hop. Leaving the call early cancels it, and with it all calls below.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar

from protocols import training
from protocols.errors import DeadlineError, NonsenseError, SwarmError, from_wire
from protocols.ids import PeerId, short_peer
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.receipts import Receipt
from protocols.services import TRAIN
from protocols.training import Gradient, Output, Pass, PassFailed, Result
from swarm import trace
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream

T = TypeVar("T", Output, Result)


class PassError(SwarmError):
    """Hop `hop` of the route failed, or cannot be reached. Hops below it may have added the index: their ledgers say."""

    def __init__(self, hop: int, peer: PeerId, cause: SwarmError) -> None:
        super().__init__(f"hop {hop} (peer {short_peer(peer)}): {cause}")
        self.hop, self.peer, self.cause = hop, peer, cause

    @property
    def message(self) -> PassFailed:
        """The same for the hop above."""
        return PassFailed(hop=self.hop, code=self.cause.code, message=str(self.cause))


async def train(pool: ChannelPool, sent: Pass) -> Result:
    """Carry one micro-batch through the route from `sent.hop` on, within `sent.budget_ms`. PassError names the hop that failed."""
    async with PassCall(pool, sent) as call:
        return await call.result()


class PassCall:
    """One call of the hop `sent.here`: `async with` sends the pass; leaving it cancels what has not come to its end.

    Every method raises PassError, also at the end of `sent.budget_ms`, which begins with `async with`.
    """

    def __init__(self, pool: ChannelPool, sent: Pass) -> None:
        self._pool, self._sent = pool, sent
        self._stream: Stream | None = None
        self._ends_at = 0.0

    async def __aenter__(self) -> Self:
        hop = self._sent.here
        self._ends_at = asyncio.get_running_loop().time() + self._sent.budget_ms / 1e3
        with self._named():
            async with asyncio.timeout_at(self._ends_at):
                channel = await self._pool.channel(hop.peer, hop.addresses, hop.certificate)
                self._stream = await channel.stream(TRAIN, is_awaited=False)
        try:
            frame = self._sent.encode()
            trace.mark_gradient("sent", self._sent.version, self._sent.index, len(frame))
            await self._send(frame)
        except BaseException:
            self._stream.cancel()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the call, and with it those of the hops below; harmless after its end."""
        if self._stream is not None:
            self._stream.cancel()

    async def output(self) -> Output:
        """The states after the route's last block, of a pass that wants them."""
        with self._named():
            output = await self._receive(Output)
            if output.hidden.shape[:2] != self._sent.payload.shape[:2]:
                raise NonsenseError(
                    f"hidden states of {list(self._sent.payload.shape[:2])} tokens were due, got {list(output.hidden.shape)}"
                )
        return output

    async def send(self, gradient: Gradient) -> None:
        """The gradient of `output`."""
        await self._send(gradient.encode())

    async def result(self) -> Result:
        """The gradient of what was sent, the loss, and the receipts of all hops from this one on."""
        with self._named():
            result = await self._receive(Result)
            _check(self._sent, result)
            num_bytes = 0 if result.gradient is None else result.gradient.num_bytes
            trace.mark_gradient("answered", self._sent.version, self._sent.index, num_bytes)
            with contextlib.suppress(SwarmError):  # the result is here: an error that follows it changes nothing
                await self._next()
        return result

    async def _send(self, frame: bytes) -> None:
        assert self._stream is not None
        with self._named():
            async with asyncio.timeout_at(self._ends_at):
                await self._stream.send(frame)

    async def _next(self) -> bytes | None:
        assert self._stream is not None
        async with asyncio.timeout_at(self._ends_at):
            return await self._stream.receive()

    async def _receive(self, kind: type[T]) -> T:
        data = await self._next()
        message = training.parse(data) if data is not None else None
        if isinstance(message, PassFailed):
            self._raise(message)
        if not isinstance(message, kind):
            raise NonsenseError(f"{kind.__name__} was due, got {type(message).__name__ if message else 'the end of the call'}")
        return message

    def _raise(self, failed: PassFailed) -> None:
        """What the hop says of itself or of one below it; of one above it, or of none, it cannot know."""
        route = self._sent.route
        if not self._sent.hop <= failed.hop < len(route):
            raise NonsenseError(f"a failure of hop {failed.hop} was reported, the route has {len(route)} hops")
        raise PassError(failed.hop, route[failed.hop].peer, from_wire(failed.code, failed.message))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors of ours or of the connection are the called hop's."""
        hop = self._sent.here
        try:
            yield
        except PassError:
            raise
        except SwarmError as error:
            raise PassError(self._sent.hop, hop.peer, error) from error
        except TimeoutError:
            late = DeadlineError(f"no answer within {self._sent.budget_ms / 1e3:.1f} s: send the micro-batch another way")
            raise PassError(self._sent.hop, hop.peer, late) from None


def parts_of_hop(sent: Pass, hop: int) -> frozenset[Part]:
    """The parts that a hop of this pass visits, if the first hop gets ids and the last one computes the loss."""
    blocks = {Part.block(number) for number in range(sent.route[hop].span.start, sent.route[hop].span.stop)}
    embed = {EMBED} if hop == 0 else set()
    head = {HEAD} if hop == len(sent.route) - 1 and sent.want == "loss" else set()
    return frozenset(blocks | embed | head)


def _check(sent: Pass, result: Result) -> None:
    """NonsenseError unless a result fits its pass. What a receipt says of the hops' sums is their word, and is not checked."""
    expected = None if sent.payload.dtype == "int32" or sent.is_evaluation else sent.payload.shape
    got = None if result.gradient is None else result.gradient.shape
    if got != expected:
        raise NonsenseError(f"a gradient of shape {expected} was due, got {got}")
    if [receipt.peer for receipt in result.receipts] != [hop.peer for hop in sent.route[sent.hop :]]:
        raise NonsenseError("a result brings one receipt of each hop, in the order of the route")
    for number, receipt in enumerate(result.receipts, sent.hop):
        _check_parts(sent, number, receipt)


def _check_parts(sent: Pass, hop: int, receipt: Receipt) -> None:
    named = {*receipt.added, *receipt.held}
    if not named <= (parts_of_hop(sent, hop) if sent.is_training else frozenset()):
        raise NonsenseError(f"the receipt of hop {hop} names parts that it does not visit: {sorted(map(str, named))[:4]}")
