"""The giving side: answers peers who ask for manifests, hashes, pieces and files, within a rate and a number of uploads.

Sessions come first: files are read in a thread of their own, answers are at most 1 MiB, and each waits for its turn in one token bucket.
Who comes when all places are taken is refused at once, and asks another peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from protocols import pieces, services
from protocols.errors import BadRequestError, ConfigError, ModelNotFoundError, OverloadedError
from protocols.ids import ModelId, PeerId
from protocols.weights import PIECE_BYTES, ManifestRequest
from swarm.rpc.call import Call, Handlers
from swarm.rpc.stream import Stream
from swarm.weights.bucket import TokenBucket
from swarm.weights.shelf import Shelf

MAX_UPLOADS = 8
"""Streams that ask for weights at once."""

MAX_UPLOADS_PER_PEER = 2
SLOWEST_BYTES_S = 64 << 10
"""With a cap on the rate, so few uploads run at once that each gets this much: a piece every 16 s."""

FIRST_QUESTION_S = 10.0
"""How long a stream may say nothing before it has a place."""

IDLE_S = 60.0
"""A stream on which nothing is asked for so long gives its place to others."""

T = TypeVar("T")


class Uploader:
    """Gives what its shelves hold. Shelves may be added and removed at any time."""

    def __init__(self, bytes_s: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """bytes_s: all uploads together send at most so much; 0 = no cap. ConfigError below SLOWEST_BYTES_S."""
        if bytes_s and bytes_s < SLOWEST_BYTES_S:
            raise ConfigError(f"an upload rate is at least {SLOWEST_BYTES_S * 8 / 1e6:.1f} Mbit/s, got {bytes_s * 8 / 1e6:.2f}")
        self.bytes_s = bytes_s
        self.sent_bytes = 0
        self._bucket = TokenBucket(bytes_s, min(bytes_s, PIECE_BYTES)) if bytes_s else None
        self._max_uploads = min(MAX_UPLOADS, bytes_s // SLOWEST_BYTES_S) if bytes_s else MAX_UPLOADS
        self._clock = clock
        self._shelves: dict[str, Shelf] = {}
        self._running: Counter[PeerId] = Counter()
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
        return shelf.manifest_frame

    def _not_here(self, wanted: ModelId) -> ModelNotFoundError:
        names = ", ".join(sorted(shelf.model.name for shelf in self._shelves.values())) or "no model"
        return ModelNotFoundError(f"this peer has {names}, not {wanted.name}@{wanted.digest[:12]}; ask another one")

    async def give(self, stream: Stream, call: Call) -> None:
        """Answer one stream of questions in their order."""
        data = await self._next(
            stream, FIRST_QUESTION_S
        )  # before a refusal, too: gRPC may lose its reason while the caller still sends
        with self._place(call.peer):
            shelf: Shelf | None = None
            while data is not None:
                match pieces.parse_request(data):
                    case pieces.WeightsRequest(model=model):
                        shelf = self._shelves.get(model.digest)
                        if shelf is None:
                            raise self._not_here(model)
                        await self._send(stream, await self._read(_holdings, shelf))
                    case _ if shelf is None:
                        raise BadRequestError("the first question of a stream says of which model")
                    case pieces.HashesRequest(tensors=tensors):
                        for tensor in tensors:
                            await self._send(stream, await self._read(_hashes, shelf, tensor))
                    case pieces.PiecesRequest(runs=runs):
                        for run in runs:
                            for piece in range(run.first, run.first + run.num):
                                await self._send(stream, await self._read(_piece, shelf, run.tensor, piece))
                    case pieces.FileRequest(file=number):
                        await self._give_file(stream, number, await self._read(shelf.file, number))
                data = await self._next(stream, IDLE_S)

    async def _give_file(self, stream: Stream, number: int, content: bytes) -> None:
        for offset in range(0, max(1, len(content)), PIECE_BYTES):
            part = memoryview(content)[offset : offset + PIECE_BYTES]
            await self._send(stream, pieces.FilePart(file=number, size=len(content), offset=offset, data=part).encode())

    @contextlib.contextmanager
    def _place(self, peer: PeerId) -> Iterator[None]:
        if self._running.total() >= self._max_uploads or self._running[peer] >= MAX_UPLOADS_PER_PEER:
            raise OverloadedError(
                f"{self._running.total()} uploads are running here, the limit: ask another peer, or again later"
            )
        self._running[peer] += 1
        try:
            yield
        finally:
            self._running[peer] -= 1
            self._running += Counter()

    async def _next(self, stream: Stream, patience_s: float) -> bytes | None:
        try:
            async with asyncio.timeout(patience_s):
                return await stream.receive()
        except TimeoutError:
            raise OverloadedError(
                f"nothing was asked for {patience_s:.0f} s: others may have this place; open another stream"
            ) from None

    async def _read(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)

    async def _send(self, stream: Stream, frame: bytes) -> None:
        if self._bucket is not None and (delay_s := self._bucket.delay_s(len(frame), self._clock())) > 0:
            await asyncio.sleep(delay_s)
        await stream.send(frame)
        self.sent_bytes += len(frame)


def _holdings(shelf: Shelf) -> bytes:
    return pieces.Holdings(bits=shelf.holdings()).encode()


def _hashes(shelf: Shelf, tensor: int) -> bytes:
    return pieces.Hashes(tensor=tensor, hashes=shelf.hashes(tensor)).encode()


def _piece(shelf: Shelf, tensor: int, piece: int) -> bytes:
    return pieces.Piece(tensor=tensor, piece=piece, data=shelf.piece(tensor, piece)).encode()
