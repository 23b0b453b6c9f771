"""A stream that carries session messages: a queue and a writer out, a reader in, and one word when it is lost.

Client and hops use the same: `post` never waits (the client's window bounds what can pile up), `on_message` may,
and then the far side feels it through gRPC's flow control. `on_lost` is called once, with the reason or None for a clean end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from protocols import inference
from protocols.errors import PeerUnreachableError, SwarmError
from swarm.inference import faults
from swarm.rpc.stream import Stream

OnMessage = Callable[["Wire", inference.Message], Awaitable[None]]
OnLost = Callable[["Wire", SwarmError | None], Awaitable[None]]


class Wire:
    """One direction-less pipe of messages over a stream. After `on_lost`, or `close`, `post` does nothing."""

    def __init__(self, stream: Stream, on_message: OnMessage, on_lost: OnLost, *, linger_s: float = 0.0) -> None:
        """linger_s: after `end`, wait this long for the other side to end too (the side that dialled should)."""
        self._linger_s = linger_s
        self._stream, self._on_message, self._on_lost = stream, on_message, on_lost
        self._outbox: asyncio.Queue[tuple[bytes, int | None] | None] = asyncio.Queue()
        """Frames and, for fault points, the numbers of the steps and replies among them."""
        self._task: asyncio.Task[SwarmError | None] | None = None
        self.is_open = True

    def start(self) -> Wire:
        """Read and write in a task of its own; `close` ends it."""
        self._task = asyncio.create_task(self.run())
        return self

    def post(self, message: inference.Message) -> None:
        """Send `message` when its turn comes."""
        if self.is_open:
            step = message.step if isinstance(message, inference.Step | inference.Reply) else None
            self._outbox.put_nowait((message.encode(), step))

    async def run(self) -> SwarmError | None:
        """Carry messages until either side ends or the stream breaks; then tell `on_lost`, unless we ended it. Returns why."""
        reason: SwarmError | None = None
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        try:
            done, _ = await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
            if reader not in done and not writer.exception() and self._linger_s:
                await asyncio.wait((reader,), timeout=self._linger_s)
            reason = _failure(reader) or _failure(writer)
        finally:
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            self._stream.cancel()
            was_open, self.is_open = self.is_open, False
            if was_open:  # also where gRPC cancels a handler because its caller is gone
                await self._on_lost(self, reason)
        return reason

    async def _read(self) -> None:
        while (data := await self._stream.receive()) is not None:
            await self._on_message(self, inference.parse(data))

    async def _write(self) -> None:
        while (item := await self._outbox.get()) is not None:
            data, step = item
            if step is not None:
                faults.point("before_send", step)
            await self._stream.send(data)
            if step is not None:
                faults.point("after_send", step)
        await self._stream.end()

    def end(self) -> None:
        """Say nothing more after what was posted; `on_lost` will not be called."""
        if self.is_open:
            self.is_open = False
            self._outbox.put_nowait(None)

    async def close(self) -> None:
        """Stop at once, whatever is in flight; `on_lost` will not be called."""
        self.is_open = False
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _failure(task: asyncio.Task[None]) -> SwarmError | None:
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    if error is None or isinstance(error, SwarmError):
        return error
    return PeerUnreachableError(f"the stream broke: {type(error).__name__}: {error}")
