"""Gives the state of units to peers, within bounds.

A stage (or a keeper of checkpoints) registers for a run one callback, which takes snapshots; this server sends them. A snapshot is a
copy, so training goes on while it is sent. Memory: one snapshot for each upload, at most MAX_UPLOADS, 2 of one peer. If all places are
taken, a caller is refused at once and asks another source; a place that is hardly used goes to the next caller (`weights/slots.py`).
Messages grow from SMALLEST_PART to 4 MiB while they are taken quickly: on a slow line a receiver must see bytes every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from protocols import services
from protocols.errors import ModelNotFoundError, OverloadedError
from protocols.ids import ModelId, short_peer
from protocols.state import PART_BYTES, StatePart, StateRequest
from protocols.units import Unit
from swarm.prefixes import prefix
from swarm.rpc.call import Call, Handlers
from swarm.rpc.stream import Stream
from swarm.training.snapshot import UnitSnapshot
from swarm.weights.slots import Slot, Slots

MAX_UPLOADS = 4
"""Uploads of state at once; `slots.MAX_UPLOADS_PER_PEER` of one peer."""

SMALLEST_PART = 64 << 10
QUICK_S, SLOW_S = 0.25, 1.0
"""A message that is taken sooner is followed by one twice as long; after a later one, by half of it."""

REQUEST_S = 10.0
"""How long a caller may take to say what it wants."""

SEND_S = 20.0
"""How long one message may take to be taken."""

TakeState = Callable[[Unit, int | None], Awaitable[UnitSnapshot]]
"""A unit's state of this version (None: the newest), as a copy. A stage takes it on the device's thread, so no step is applied
meanwhile; a snapshot that was taken before may be given again. SpanNotServedError: the unit is not here; VersionMismatchError: that version
of it is not here, with the version that is."""


async def _at_once(num_bytes: int) -> None:
    """No limit of the rate."""


class StateServer:
    """All methods belong to one event loop."""

    def __init__(
        self,
        turn: Callable[[int], Awaitable[None]] = _at_once,
        clock: Callable[[], float] = time.monotonic,
        send_s: float = SEND_S,
    ) -> None:
        """turn: waits until the rate of all uploads allows so many bytes more (`Uploader.turn`)."""
        self.sent_bytes = 0
        self._turn, self._clock, self._send_s = turn, clock, send_s
        self._slots = Slots(MAX_UPLOADS)
        self._runs: dict[ModelId, TakeState] = {}

    def add(self, run: ModelId, take: TakeState) -> None:
        """From now on give the state of this run."""
        self._runs[run] = take

    def remove(self, run: ModelId) -> None:
        self._runs.pop(run, None)

    def handlers(self) -> Handlers:
        """By method name, for the peer's server, which lets in members of the swarm only."""
        return {services.STATE.name: self.give}

    async def give(self, stream: Stream, call: Call) -> None:
        """Answer one request. OverloadedError if there is no place, ModelNotFoundError for another run, else as `TakeState`."""
        request = await self._request(stream)
        take = self._runs.get(request.run)
        if take is None:
            raise ModelNotFoundError(f"no state of {request.run.name}@{request.run.digest[:12]} is here; ask another peer")
        sending: asyncio.Task[None] | None = None
        gave_way = False

        def end() -> None:
            nonlocal gave_way
            gave_way = True
            assert sending is not None
            sending.cancel()

        slot = Slot(call.peer, prefix(call.address), end, self._clock())
        self._slots.wait(slot)
        try:
            if not self._slots.enter(slot, self._clock()):
                raise OverloadedError(f"{self._slots.num_held} uploads of state are running here, the limit: ask another peer")
            sending = asyncio.create_task(self._send_all(stream, slot, take, request), name=f"state to {short_peer(call.peer)}")
            try:
                await sending
            except asyncio.CancelledError:
                if not gave_way:
                    raise
                raise OverloadedError("this upload of state gave its place to another peer: ask another one") from None
            finally:
                sending.cancel()
        finally:
            self._slots.leave(slot)

    async def _request(self, stream: Stream) -> StateRequest:
        try:
            async with asyncio.timeout(REQUEST_S):
                data = await stream.receive()
        except TimeoutError:
            raise OverloadedError(f"no request of state came within {REQUEST_S:.0f} s: open another stream") from None
        return StateRequest.parse(data or b"")

    async def _send_all(self, stream: Stream, slot: Slot, take: TakeState, request: StateRequest) -> None:
        for unit in request.units:
            snapshot = await take(unit, request.version)
            header = await asyncio.to_thread(snapshot.header)
            slot.asked(self._clock())  # the copy and its digest were our time
            await self._send(stream, slot, header.encode())
            await self._send_content(stream, slot, snapshot.content)
            slot.answered(self._clock())

    async def _send_content(self, stream: Stream, slot: Slot, content: memoryview) -> None:
        at, size = 0, SMALLEST_PART
        while at < len(content):
            part = content[at : at + size]
            before_s = self._clock()
            await self._send(stream, slot, StatePart(offset=at, data=part).encode())
            took_s = self._clock() - before_s
            at += len(part)
            size = min(PART_BYTES, 2 * size) if took_s < QUICK_S else max(SMALLEST_PART, size // 2) if took_s > SLOW_S else size

    async def _send(self, stream: Stream, slot: Slot, frame: bytes) -> None:
        await self._turn(len(frame))
        slot.offered(len(frame))
        try:
            async with asyncio.timeout(self._send_s):
                await stream.send(frame)
        except TimeoutError:
            raise OverloadedError(
                f"you did not take {len(frame)} bytes within {self._send_s:.0f} s: open another stream"
            ) from None
        slot.took(self._clock())
        self.sent_bytes += len(frame)
