"""The uploader: answers peers that ask for weights.

They ask for manifests, hashes, pieces and files, and are answered within a rate and a number of uploads.

Sessions come first: files are read in a thread of their own, answers are at most 1 MiB, and all wait in one token bucket.
If all slots are taken, a new stream waits up to WAIT_S for an unused one (`slots.py`). Then it is refused, and its peer asks another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from protocols import pieces, services
from protocols.errors import BadRequestError, ConfigError, ModelNotFoundError, OverloadedError
from protocols.ids import ModelId, short_peer
from protocols.weights import PIECE_BYTES, ManifestRequest
from swarm.meter import Meter
from swarm.prefixes import prefix
from swarm.rpc.call import Call, Handlers
from swarm.rpc.stream import Stream
from swarm.weights.bucket import TokenBucket
from swarm.weights.shelf import Shelf
from swarm.weights.slots import Slot, Slots

MAX_UPLOADS = 8
"""Streams that ask for weights at once."""

SLOWEST_BYTES_S = 64 << 10
"""With a cap on the rate, so few uploads run at once that each gets this much: a piece every 16 s."""

FIRST_QUESTION_S = 10.0
"""How long a stream may say nothing before it has a place."""

IDLE_S = 60.0
"""A stream on which nothing is asked for so long ends, also if no other stream waits for its place."""

WAIT_S = 3.0
"""How long a stream waits for a place before it is refused."""

MAX_DEBT_S = 10.0
"""How long uploads may stand still at most, after others than uploads have sent."""

LOOK_S = 0.2
"""So often one that waits looks whether a place is not used any more."""

MANIFESTS_WINDOW_S = 16.0
"""Seconds in which one network may fetch `UploadLimits.manifests_bytes`."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """What one receiver, or its network, may cost an uploader."""

    send_s: float = 20.0
    """How long one answer of at most 1 MiB may take to be taken; longer ones get more, in proportion."""

    manifests_bytes: int = 64 << 20
    """Bytes of manifests that one network may fetch in `MANIFESTS_WINDOW_S`; no manifest is longer than that."""


class Uploader:
    """Gives what its shelves hold. Shelves may be added and removed at any time."""

    def __init__(self, bytes_s: int = 0, clock: Callable[[], float] = time.monotonic, limits: UploadLimits | None = None) -> None:
        """bytes_s: all uploads together send at most so much; 0 = no cap. ConfigError below SLOWEST_BYTES_S."""
        if bytes_s and bytes_s < SLOWEST_BYTES_S:
            raise ConfigError(f"an upload rate is at least {SLOWEST_BYTES_S * 8 / 1e6:.1f} Mbit/s, got {bytes_s * 8 / 1e6:.2f}")
        self.bytes_s = bytes_s
        self.sent_bytes = 0
        self._bucket = TokenBucket(bytes_s, min(bytes_s, PIECE_BYTES)) if bytes_s else None
        self._slots = Slots(min(MAX_UPLOADS, bytes_s // SLOWEST_BYTES_S) if bytes_s else MAX_UPLOADS)
        self._limits = limits or UploadLimits()
        self._manifests = Meter(self._limits.manifests_bytes, MANIFESTS_WINDOW_S, clock)
        self._clock = clock
        self._shelves: dict[str, Shelf] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="uploads")

    def add(self, shelf: Shelf) -> None:
        """From now on give of this model."""
        self._shelves[shelf.model.digest] = shelf

    def remove(self, digest: str) -> None:
        self._shelves.pop(digest, None)

    def handlers(self) -> Handlers:
        """By method name, for the peer's server."""
        return {services.PIECES.name: self.give, services.MANIFEST.name: self.give_manifest}

    async def give_manifest(self, request: bytes, call: Call) -> bytes:
        """The manifest of the model that is asked for, or of another one of that name, so that a peer can tell what differs."""
        wanted = ManifestRequest.parse(request).model
        named = [shelf for shelf in self._shelves.values() if shelf.model.name == wanted.name]
        shelf = self._shelves.get(wanted.digest) or (named[0] if named else None)
        if shelf is None:
            raise self._not_here(wanted)
        await self._pay_manifest(prefix(call.address), len(shelf.manifest_frame))
        return shelf.manifest_frame

    async def _pay_manifest(self, network: str, num_bytes: int) -> None:
        """A manifest may have megabytes, and costs its asker nothing: it counts as uploaded, and each network may have so many."""
        if not self._manifests.spend(network, num_bytes):
            raise OverloadedError("manifests were fetched from your network too often: ask another peer, or again in a minute")
        await self.turn(num_bytes)

    def _not_here(self, wanted: ModelId) -> ModelNotFoundError:
        names = ", ".join(sorted(shelf.model.name for shelf in self._shelves.values())) or "no model"
        return ModelNotFoundError(f"this peer has {names}, not {wanted.name}@{wanted.digest[:12]}; ask another one")

    async def give(self, stream: Stream, call: Call) -> None:
        """Answer one stream of questions in their order, as long as it makes use of its place."""
        data = await self._next(
            stream, FIRST_QUESTION_S
        )  # before a refusal, too: gRPC may lose its reason while the caller still sends
        if data is None:
            return
        answering: asyncio.Task[None] | None = None
        gave_way = False

        def end() -> None:
            nonlocal gave_way
            gave_way = True
            assert answering is not None
            answering.cancel()

        slot = Slot(call.peer, prefix(call.address), end, self._clock())
        self._slots.wait(slot)
        try:
            await self._enter(slot)
            answering = asyncio.create_task(self._answer_all(stream, slot, data), name=f"upload to {short_peer(call.peer)}")
            try:
                await answering
            except asyncio.CancelledError:
                if not gave_way:
                    raise
                raise OverloadedError("this upload gave its place to another peer: ask another one, or again later") from None
            finally:
                answering.cancel()
        finally:
            self._slots.leave(slot)

    async def _enter(self, slot: Slot) -> None:
        """Wait for a place. OverloadedError after WAIT_S."""
        ends_at_s = self._clock() + WAIT_S
        while not self._slots.enter(slot, self._clock()):
            if self._clock() >= ends_at_s:
                raise OverloadedError(
                    f"{self._slots.num_held} uploads are running here, the limit: ask another peer, or again later"
                )
            await asyncio.sleep(LOOK_S)

    async def _answer_all(self, stream: Stream, slot: Slot, first: bytes) -> None:
        data: bytes | None = first
        shelf: Shelf | None = None
        while data is not None:
            request = pieces.parse_request(data)
            slot.asked(self._clock())
            if isinstance(request, pieces.WeightsRequest):
                shelf = self._shelves.get(request.model.digest)
                if shelf is None:
                    raise self._not_here(request.model)
            if shelf is None:
                raise BadRequestError("the first question of a stream says of which model")
            async for frame in self._answers(shelf, request):
                slot.offered(len(frame))
                await self._send(stream, frame)
                slot.took(self._clock())
            slot.answered(self._clock())
            data = await self._next(stream, IDLE_S)

    async def _answers(self, shelf: Shelf, request: pieces.Request) -> AsyncIterator[bytes]:
        match request:
            case pieces.WeightsRequest():
                yield await self._read(_holdings, shelf)
            case pieces.HashesRequest(tensors=tensors):
                for tensor in tensors:
                    yield await self._read(_hashes, shelf, tensor)
            case pieces.PiecesRequest(runs=runs):
                for run in runs:
                    for piece in range(run.first, run.first + run.num):
                        yield await self._read(_piece, shelf, run.tensor, piece)
            case pieces.FileRequest(file=number):
                for part in _file_parts(number, await self._read(shelf.file, number)):
                    yield part

    async def _next(self, stream: Stream, timeout_s: float) -> bytes | None:
        try:
            async with asyncio.timeout(timeout_s):
                return await stream.receive()
        except TimeoutError:
            raise OverloadedError(
                f"nothing was asked for {timeout_s:.0f} s: others may have this place; open another stream"
            ) from None

    async def _read(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)

    async def turn(self, num_bytes: int) -> None:
        """Wait until the rate allows so many bytes more. Other uploads of this peer wait here, too, so that all share one rate."""
        if self._bucket is not None and (delay_s := self._bucket.delay_s(num_bytes, self._clock())) > 0:
            await asyncio.sleep(delay_s)

    def spend(self, num_bytes: int) -> None:
        """So many bytes were sent by others than uploads, without waiting: uploads make up for it, and wait MAX_DEBT_S at most."""
        if self._bucket is not None:
            self._bucket.spend(num_bytes, self._clock(), MAX_DEBT_S)

    async def _send(self, stream: Stream, frame: bytes) -> None:
        await self.turn(len(frame))
        allowed_s = self._limits.send_s * max(1.0, len(frame) / PIECE_BYTES)
        try:
            async with asyncio.timeout(allowed_s):
                await stream.send(frame)
        except TimeoutError:
            raise OverloadedError(f"you did not take {len(frame)} bytes within {allowed_s:.0f} s: open another stream") from None
        self.sent_bytes += len(frame)


def _file_parts(number: int, content: bytes) -> Iterator[bytes]:
    for offset in range(0, max(1, len(content)), PIECE_BYTES):
        part = memoryview(content)[offset : offset + PIECE_BYTES]
        yield pieces.FilePart(file=number, size=len(content), offset=offset, data=part).encode()


def _holdings(shelf: Shelf) -> bytes:
    return shelf.holdings().encode()


def _hashes(shelf: Shelf, tensor: int) -> bytes:
    return pieces.Hashes(tensor=tensor, hashes=shelf.hashes(tensor)).encode()


def _piece(shelf: Shelf, tensor: int, piece: int) -> bytes:
    return pieces.Piece(tensor=tensor, piece=piece, data=shelf.piece(tensor, piece)).encode()
