"""A stream that carries session messages.

A queue and a writer out, a reader in, and one message when it is lost.

Client and hops use the same: `post` never waits (the client's window bounds what can pile up), `on_message` may,
and then the far side feels it through gRPC's flow control. `on_lost` is called once, with the reason or None for a clean end.

What waits to be sent is kept as messages and encoded one by one: they share the memory of what their sender retains anyway, so that
a peer which reads slowly, or asks for the same again and again, costs no copies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from protocols import inference
from protocols.defaults import WINDOW_BYTES
from protocols.errors import PeerUnreachableError, SwarmError
from protocols.inference import Message, Reply, Step
from protocols.words import counted
from swarm import faults, trace
from swarm.rpc.stream import Stream
from swarm.streams.inbox import weight

OnMessage = Callable[["MessageStream", Message], Awaitable[None]]
OnLost = Callable[["MessageStream", SwarmError | None], Awaitable[None]]

MAX_OUTBOX_BYTES = 4 * WINDOW_BYTES
"""What they keep alive, a single message excepted; an honest session has WINDOW_BYTES in flight, and may ask for them once more."""

_TRACED = (Step, Reply)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStreamLimits:
    """What may wait on a wire, and how long its end may take."""

    max_outbox: int = 256
    """Messages that wait to be sent; an honest session has a window of 8 steps and a few words. Beyond it the wire is given up."""

    linger_s: float = 3.0
    """Seconds after our last word: for it to be sent, and then for the other side to end too."""


DEFAULT = MessageStreamLimits()


class MessageStream:
    """One direction-less pipe of messages over a stream. After `on_lost`, or `close`, `post` does nothing."""

    def __init__(
        self,
        stream: Stream,
        on_message: OnMessage,
        on_lost: OnLost,
        *,
        has_dialled: bool = False,
        limits: MessageStreamLimits = DEFAULT,
    ) -> None:
        """has_dialled: the other side is one that we chose; it ends after us, and nonsense from it is its fault, not a refusal."""
        self._has_dialled, self._limits = has_dialled, limits
        self._stream, self._on_message, self._on_lost = stream, on_message, on_lost
        self._outbox: asyncio.Queue[Message | Iterator[Message] | None] = asyncio.Queue()
        self._outbox_bytes = 0
        self._has_overflowed = False
        self._alarm = asyncio.Event()
        """Set when the last word was said, or too much waits: from then on the wire has little time."""
        self._task: asyncio.Task[SwarmError | None] | None = None
        self.is_open = True

    def start(self) -> MessageStream:
        """Read and write in a task of its own; `close` ends it."""
        self._task = asyncio.create_task(self.run())
        return self

    def post(self, message: Message | Iterator[Message]) -> None:
        """Send `message` after those before it; an iterator is asked for its messages then, one by one."""
        if not self.is_open:
            return
        num_bytes = self._outbox_bytes + weight(message)
        if self._outbox.qsize() >= self._limits.max_outbox or (self._outbox_bytes and num_bytes > MAX_OUTBOX_BYTES):
            self._has_overflowed = True
            self._alarm.set()
        else:
            self._outbox_bytes = num_bytes
            self._outbox.put_nowait(message)

    async def run(self) -> SwarmError | None:
        """Carry messages until either side ends or the stream breaks; then tell `on_lost`, unless we ended it. Returns why."""
        reason: SwarmError | None = None
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        watch = asyncio.create_task(self._watch())
        try:
            done, _ = await asyncio.wait((writer, reader, watch), return_when=asyncio.FIRST_COMPLETED)
            if done == {writer} and self._has_dialled:  # the other side ends after us, or has said why it takes nothing more
                await asyncio.wait((reader,), timeout=self._limits.linger_s)
            reason = _failure(reader) or _failure(writer) or _failure(watch)
        finally:
            for task in (writer, reader, watch):
                task.cancel()
            try:
                await asyncio.gather(writer, reader, watch, return_exceptions=True)
            finally:  # gRPC may cancel a handler twice, and `on_lost` must be called all the same
                self._stream.cancel()
                was_open, self.is_open = self.is_open, False
                if was_open:  # also where gRPC cancels a handler because its caller is gone
                    await self._on_lost(self, reason)
        return reason

    async def _read(self) -> None:
        while (data := await self._stream.receive()) is not None:
            message = self._parse(data)
            if isinstance(message, _TRACED):
                trace.mark("arrived", message.session, message.step, len(data))
            await self._on_message(self, message)

    def _parse(self, data: bytes) -> Message:
        try:
            return inference.parse(data)
        except SwarmError as error:
            if not self._has_dialled:
                raise
            raise PeerUnreachableError(f"the peer sent what is no message: {error}") from error

    async def _write(self) -> None:
        while (item := await self._outbox.get()) is not None:
            for message in item if isinstance(item, Iterator) else (item,):
                await self._send(message)
            self._outbox_bytes -= weight(item)
        await self._stream.end()

    async def _send(self, message: Message) -> None:
        if not isinstance(message, _TRACED):
            await self._stream.send(message.encode())
            return
        faults.point("before_send", message.step)
        frame = message.encode()
        trace.mark("encoded", message.session, message.step, len(frame))
        await self._stream.send(frame)
        faults.point("after_send", message.step)

    async def _watch(self) -> None:
        """Return where the last word does not get through, since the other side reads nothing; raise where too much waits."""
        await self._alarm.wait()
        if self._has_overflowed:
            waiting = f"{counted(self._outbox.qsize(), 'message')} of {self._outbox_bytes} bytes"
            raise PeerUnreachableError(f"{waiting} wait for a peer that does not read: the stream is given up")
        await asyncio.sleep(self._limits.linger_s)

    def end(self) -> None:
        """Say nothing more after what was posted; `on_lost` will not be called."""
        if self.is_open:
            self.is_open = False
            self._outbox.put_nowait(None)
            self._alarm.set()

    async def ended(self) -> None:
        """Wait until what was posted before `end` has been sent and the other side has ended too, `linger_s` each at most."""
        if self._task is not None and self._task is not asyncio.current_task():
            await asyncio.wait((self._task,))

    async def close(self) -> None:
        """Stop at once, whatever is in flight; `on_lost` will not be called."""
        self.is_open = False
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._stream.cancel()  # a task that was cancelled before its first turn has not done so


def _failure(task: asyncio.Task[None]) -> SwarmError | None:
    if not task.done() or task.cancelled():
        return None
    error = task.exception()
    if error is None or isinstance(error, SwarmError):
        return error
    return PeerUnreachableError(f"the stream broke: {type(error).__name__}: {error}")
