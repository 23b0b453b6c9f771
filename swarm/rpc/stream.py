"""A stream of frames between two peers.

Both sides have the same interface.

gRPC shows a server the same end of stream whether its caller finished or vanished, so a clean end is said: the client's last
message is empty (no frame is). A cancelled gRPC read cancels the whole call, so one task reads into a short queue, and `receive`
waits at the queue. The queue is short on purpose: if `receive` is not called, gRPC's flow control stops the sender.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

import grpc
import grpc.aio

from protocols import parts
from protocols.defaults import MAX_FRAME_BYTES
from protocols.errors import FrameError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId, short_peer
from swarm.rpc import status
from swarm.rpc.admission import Arrivals

_QUEUE = 4
_QUEUE_BYTES = 8 << 20
"""While received frames of so many bytes wait, or are handled, no further one is read."""

_END = b""


def _check_size(frame: bytes) -> None:
    if len(frame) > MAX_FRAME_BYTES:
        raise FrameError(f"a message holds at most {MAX_FRAME_BYTES} bytes, got {len(frame)}: send it in smaller parts")


class Stream(ABC):
    """Frames both ways, in order, until one side ends or the connection breaks.

    `send` and `receive` may run at the same time, each from one task at a time. Cancelling `receive` loses nothing;
    cancelling `send` breaks the stream.
    """

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(_QUEUE)
        self._num_bytes = 0
        """Of the frames in the queue, and of the one that is handled."""
        self._handled_bytes = 0
        self._has_room = asyncio.Event()
        self._outcome: Exception | None = None
        self._is_over = False
        self._reader = asyncio.create_task(self._read_all(), name=f"reader of {short_peer(peer)}")

    async def receive(self) -> bytes | None:
        """The next frame; None if the other side has ended cleanly (again and again, if asked again).

        The frame before it is handled then: until it is, it counts as one that waits.
        Raises PeerUnreachableError if the connection broke, or the error with which the peer refused.
        """
        self._num_bytes -= self._handled_bytes
        self._handled_bytes = 0
        self._has_room.set()
        if not self._is_over:
            item = await self._queue.get()
            if item:
                if isinstance(item, bytes):
                    self._handled_bytes = len(item)
                    return item
                self._outcome = item
            self._is_over = True
        if self._outcome:
            raise self._outcome
        return None

    @abstractmethod
    async def send(self, frame: bytes) -> None:
        """Hand one frame to the transport; waits while the other side is slow. Raises as `receive` does."""

    @abstractmethod
    async def end(self) -> None:
        """Say that no more frames will be sent from here; the other direction stays open."""

    @abstractmethod
    def cancel(self) -> None:
        """Break the stream at once, both ways; the other side gets PeerUnreachableError. Harmless after the end."""

    @abstractmethod
    async def _read(self) -> bytes | None:
        """One frame, or None at a clean end; SwarmError otherwise."""

    def _break(self, error: SwarmError) -> None:
        """Raise `error` in a waiting `receive` now; frames that were not received yet are dropped."""
        self._reader.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def _read_all(self) -> None:
        item: bytes | Exception | None = _END
        while isinstance(item, bytes):
            while self._num_bytes >= _QUEUE_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            try:
                item = await self._read()
            except Exception as error:  # `receive` raises it
                item = error
            self._num_bytes += len(item) if isinstance(item, bytes) else 0
            await self._queue.put(item)


class ClientStream(Stream):
    """The caller's side."""

    def __init__(self, peer: PeerId, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        self._call = call
        self._has_ended = False
        super().__init__(peer)

    async def send(self, frame: bytes) -> None:
        assert frame and not self._has_ended, "a frame is never empty, and nothing follows the end"
        _check_size(frame)
        for part in parts.split(frame):
            await self._write(part)

    async def _write(self, frame: bytes) -> None:
        try:
            await self._call.write(frame)
        except grpc.aio.AioRpcError as error:
            raise status.from_grpc(error, self.peer) from None
        except (asyncio.InvalidStateError, grpc.aio.UsageError):
            raise await self._why() from None
        except asyncio.CancelledError:
            raise status.of_cancelled(self.peer) from None

    async def end(self) -> None:
        """Half-close. Silent if the peer has already ended the call: what it said is in `receive`."""
        if self._has_ended or self._call.done():
            return
        self._has_ended = True
        try:
            await self._call.write(_END)
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            return

    def cancel(self) -> None:
        if not self._is_over:
            self._break(PeerUnreachableError(f"the stream to peer {short_peer(self.peer)} was cancelled here"))
        self._call.cancel()

    async def _read(self) -> bytes | None:
        try:
            frame = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise status.from_grpc(error, self.peer) from None
        except asyncio.CancelledError:
            raise status.of_cancelled(self.peer) from None
        if frame is grpc.aio.EOF:
            if await self._call.code() is grpc.StatusCode.OK:
                return None
            raise await self._why()
        assert isinstance(frame, bytes)
        return frame

    async def _why(self) -> SwarmError:
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return PeerUnreachableError(f"peer {short_peer(self.peer)} has ended the stream")
        return status.from_status(code, await self._call.details(), await self._call.trailing_metadata() or (), self.peer)


class ServerStream(Stream):
    """The handler's side; it ends when the handler returns."""

    def __init__(self, peer: PeerId, context: grpc.aio.ServicerContext[Any, Any], arrivals: Arrivals, address: str) -> None:
        """arrivals: who may send how much that has not arrived as a whole. address: where the caller is."""
        self._context, self._arrivals, self._address = context, arrivals, address
        self._is_first = True
        self._has_ended = False
        self._is_broken = False
        super().__init__(peer)

    @property
    def is_broken(self) -> bool:
        """True once the caller has vanished, or `cancel` was called."""
        return self._is_broken

    def _broken(self) -> PeerUnreachableError:
        self._is_broken = True
        return PeerUnreachableError(f"the stream from peer {short_peer(self.peer)} broke off before its end")

    async def send(self, frame: bytes) -> None:
        assert frame and not self._has_ended, "a frame is never empty, and nothing follows the end"
        _check_size(frame)
        if self._is_broken:
            raise self._broken()
        try:
            await self._context.write(frame)
        except (grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise self._broken() from None

    async def end(self) -> None:
        """We send nothing more; the peer is told when the handler returns."""
        self._has_ended = True

    def cancel(self) -> None:
        if not self._is_over:
            self._break(self._broken())
        self._is_broken = True

    async def _read(self) -> bytes | None:
        if self._is_first:
            self._is_first = False
            async with self._arrivals.turn(self._address):
                frame = await self._read_message()
        else:
            frame = await self._read_message()
        if not parts.is_part(frame):
            return frame or None
        async with self._arrivals.in_parts(self.peer, self._address):
            return await self._read_rest(frame)

    async def _read_rest(self, message: bytes) -> bytes:
        """The frame of which `message` is the first part."""
        joined = parts.Joined()
        while (frame := joined.take(message)) is None:
            message = await self._read_message()
        return frame

    async def _read_message(self) -> bytes:
        try:
            message = await self._context.read()
        except (grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise self._broken() from None
        if message is grpc.aio.EOF:
            raise self._broken()
        assert isinstance(message, bytes)
        return message

    async def close(self) -> None:
        """The handler is done: stop reading."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
