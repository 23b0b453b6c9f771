"""What this process can give of one model: its tensors.

They lie in a directory, in the Hub's cache or in ours.

Blocking (disk), so for a worker thread. Hashes of a tensor that was not fetched are computed when they are first asked for, and kept
within a bound. Pieces of a file that is still being fetched are hashed before they are sent.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from protocols.errors import CheckpointError, ModelNotFoundError
from protocols.ids import ModelId
from protocols.pieces import Holdings, pack_partial
from protocols.weights import PIECE_BYTES, Manifest, TensorEntry
from protocols.words import counted
from swarm.checkpoints.stored import TensorInfo
from swarm.weights.bitmap import Bitmap
from swarm.weights.cache import ModelCache
from swarm.weights.journal import HASH_BYTES
from swarm.weights.shard_file import Place

MAX_KEPT_BYTES = 16 << 20
"""Of lists of hashes: they stand for 512 GB of weights."""


class Shelf:
    """Read-only. The receiver checks what is sent; we send what is on the disk now."""

    def __init__(self, model: ModelId, manifest: Manifest, locate: Callable[[int], Place | None], directory: Path) -> None:
        """locate: where a tensor (by its number in the manifest) lies; None = no piece of it is here. directory: the small files."""
        self.model, self.manifest = model, manifest
        self.manifest_frame = manifest.encode()  # once: of a large model it has megabytes, and any peer may ask for it
        self._locate, self._directory = locate, directory
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def of_directory(cls, model: ModelId, manifest: Manifest, tensors: Mapping[str, TensorInfo], directory: Path) -> Self:
        """A checkpoint in Hugging Face form; all its tensors are there."""
        places = [Place(tensors[entry.name].file, tensors[entry.name].start) for entry in manifest.entries]
        return cls(model, manifest, lambda tensor: places[tensor], directory)

    @classmethod
    def of_cache(cls, cache: ModelCache) -> Self:
        """Whatever the cache holds by then."""
        return cls(cache.model, cache.manifest, cache.locate, cache.directory)

    def holdings(self) -> Holdings:
        """Which tensors are here, and which pieces of others."""
        num, partial = len(self.manifest.entries), {}
        whole = Bitmap(num)
        for tensor in range(num):
            place = self._locate(tensor)
            if place is None:
                continue
            if place.pieces is None or place.pieces.is_full:
                whole.set(tensor)
            else:
                partial[tensor] = place.pieces.to_bytes()
        return Holdings(bits=whole.to_bytes(), partial=pack_partial(partial))

    def hashes(self, tensor: int) -> bytes:
        """SHA-256 of each piece of a tensor, joined: those that it was fetched with, or else of what is on the disk now.

        ModelNotFoundError if no piece of it is here (any more).
        """
        entry = self._entry(tensor)
        if (place := self._locate(tensor)) and place.hashes is not None:
            return place.hashes
        with self._lock:
            if tensor in self._kept:
                self._kept.move_to_end(tensor)
                return self._kept[tensor]
        found = b"".join(hashlib.sha256(self.piece(tensor, piece)).digest() for piece in range(entry.num_pieces))
        with self._lock:
            self._kept_bytes += len(found) - len(self._kept.pop(tensor, b""))
            self._kept[tensor] = found
            while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return found

    def piece(self, tensor: int, piece: int) -> bytes:
        """The bytes of one piece; ModelNotFoundError if it is not here (any more), CheckpointError if the disk has changed it."""
        entry = self._entry(tensor)
        if piece >= entry.num_pieces:
            raise ModelNotFoundError(f"tensor {entry.name!r} has {counted(entry.num_pieces, 'piece')}, asked for number {piece}")
        for _attempt in range(2):  # a shard that became whole in between has another name now
            place = self._locate(tensor)
            if place is None or (place.pieces is not None and piece not in place.pieces):
                break
            try:
                return self._read(place, piece, entry)
            except FileNotFoundError:
                continue
        raise ModelNotFoundError(f"piece {piece} of tensor {entry.name!r} is not at this peer; ask another one")

    def _read(self, place: Place, piece: int, entry: TensorEntry) -> bytes:
        with place.file.open("rb", buffering=0) as file:
            file.seek(place.start + piece * PIECE_BYTES)
            data = file.read(entry.piece_bytes(piece))
        if len(data) != entry.piece_bytes(piece):
            raise CheckpointError(f"tensor {entry.name!r} is cut off at this peer; ask another one")
        if place.pieces is not None and place.hashes is not None:
            expected = place.hashes[HASH_BYTES * piece : HASH_BYTES * (piece + 1)]
            if hashlib.sha256(data).digest() != expected:
                raise CheckpointError(
                    f"piece {piece} of tensor {entry.name!r} has changed at this peer since it was fetched; ask another one"
                )
        return data

    def file(self, number: int) -> bytes:
        """The content of a small file; ModelNotFoundError where it is not here."""
        if number >= len(self.manifest.files):
            raise ModelNotFoundError(
                f"{self.model.name} has {counted(len(self.manifest.files), 'file')}, asked for number {number}"
            )
        entry = self.manifest.files[number]
        try:
            content = (self._directory / entry.name).read_bytes()
        except OSError as error:
            raise ModelNotFoundError(f"file {entry.name!r} is not at this peer: {error.strerror}; ask another one") from None
        if hashlib.sha256(content).digest() != entry.sha256:
            raise CheckpointError(f"file {entry.name!r} has changed at this peer since it was hashed; ask another one")
        return content

    def _entry(self, tensor: int) -> TensorEntry:
        if tensor >= len(self.manifest.entries):
            raise ModelNotFoundError(
                f"{self.model.name} has {counted(len(self.manifest.entries), 'tensor')}, asked for number {tensor}"
            )
        return self.manifest.entries[tensor]
