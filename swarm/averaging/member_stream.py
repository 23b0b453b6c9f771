"""A slice stream with one member: deadlines, and failures with its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from protocols.averaging import Values
from protocols.errors import DeadlineError, PeerUnreachableError
from protocols.ids import PeerId, short_peer
from swarm.averaging.plan import MemberFailedError
from swarm.rpc.stream import Stream

SECOND_HAND, THIRD_HAND = 1.5, 3.0
"""How many deadlines a member is waited for that may itself wait for another one, or that waits and then computes."""


@asynccontextmanager
async def waiting_for(peer: PeerId, what: str, limit_s: float) -> AsyncIterator[None]:
    """If it takes longer than `limit_s`, or the peer cannot be reached: MemberFailedError, with its name."""
    try:
        async with asyncio.timeout(limit_s) as timeout:
            yield
    except TimeoutError:
        if not timeout.expired():
            raise
        raise MemberFailedError(peer, f"{short_peer(peer)} sent no {what} within {limit_s:.1f} s") from None
    except (PeerUnreachableError, DeadlineError) as error:
        raise MemberFailedError(peer, f"{short_peer(peer)} sent no {what}: {error}") from None


class MemberStream:
    """Either end of it."""

    def __init__(self, peer: PeerId, stream: Stream, deadline_s: float, on_sent: Callable[[int], None]) -> None:
        self.peer, self._on_sent = peer, on_sent
        self._stream, self._deadline_s = stream, deadline_s

    async def send(self, frame: bytes, times: float = SECOND_HAND) -> None:
        """times: how many deadlines the peer may take until it reads."""
        async with waiting_for(self.peer, "word that it reads our values", times * self._deadline_s):
            await self._stream.send(frame)
        self._on_sent(len(frame))

    async def receive(self, what: str, num_bytes: int, times: float = SECOND_HAND) -> memoryview:
        """The next frame of values, which must have exactly so many bytes."""
        async with waiting_for(self.peer, what, times * self._deadline_s):
            frame = await self._stream.receive()
        data = Values.parse(frame).data if frame is not None else b""
        if len(data) != num_bytes:
            raise MemberFailedError(
                self.peer, f"{short_peer(self.peer)} sent a {what} of {len(data)} bytes, expected {num_bytes}"
            )
        return memoryview(data)

    async def receive_end(self) -> None:
        """Nothing may follow."""
        async with waiting_for(self.peer, "end of its stream", THIRD_HAND * self._deadline_s):
            if await self._stream.receive() is not None:
                raise MemberFailedError(self.peer, f"{short_peer(self.peer)} sent more than its part")

    async def end(self) -> None:
        """Ours; then the peer's."""
        await self._stream.end()
        await self.receive_end()

    def cancel(self) -> None:
        self._stream.cancel()
