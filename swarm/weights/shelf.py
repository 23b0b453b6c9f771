"""What this process can give of one model: its tensors.

They lie in a directory, in the Hub's cache or in ours.

Blocking (disk), so for a worker thread. Hashes of pieces are computed when they are first asked for, and kept within a bound.
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
from protocols.weights import PIECE_BYTES, Manifest, TensorEntry
from protocols.words import counted
from swarm.models.stored import TensorInfo
from swarm.weights.bitmap import Bitmap
from swarm.weights.cache import ModelCache

MAX_KEPT_BYTES = 16 << 20
"""Of lists of hashes: they stand for 512 GB of weights."""

Place = tuple[Path, int]
"""A file, and where in it a tensor begins."""


class Shelf:
    """Read-only. The receiver checks what is sent; we send what is on the disk now."""

    def __init__(self, model: ModelId, manifest: Manifest, locate: Callable[[int], Place | None], directory: Path) -> None:
        """locate: where a tensor (by its number in the manifest) lies; None = not here. directory: the small files."""
        self.model, self.manifest = model, manifest
        self.manifest_frame = manifest.encode()  # once: of a large model it has megabytes, and any peer may ask for it
        self._locate, self._directory = locate, directory
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def of_directory(cls, model: ModelId, manifest: Manifest, tensors: Mapping[str, TensorInfo], directory: Path) -> Self:
        """A checkpoint in Hugging Face form; all its tensors are there."""
        places = [(tensors[entry.name].file, tensors[entry.name].start) for entry in manifest.entries]
        return cls(model, manifest, lambda tensor: places[tensor], directory)

    @classmethod
    def of_cache(cls, cache: ModelCache) -> Self:
        """Whatever the cache holds by then."""
        return cls(cache.model, cache.manifest, cache.locate, cache.directory)

    def holdings(self) -> bytes:
        """One bit a tensor."""
        num = len(self.manifest.entries)
        return Bitmap.of(num, (tensor for tensor in range(num) if self._locate(tensor) is not None)).to_bytes()

    def hashes(self, tensor: int) -> bytes:
        """SHA-256 of each piece of a tensor, joined."""
        with self._lock:
            if tensor in self._kept:
                self._kept.move_to_end(tensor)
                return self._kept[tensor]
        entry = self._entry(tensor)
        found = b"".join(hashlib.sha256(self.piece(tensor, piece)).digest() for piece in range(entry.num_pieces))
        with self._lock:
            self._kept_bytes += len(found) - len(self._kept.pop(tensor, b""))
            self._kept[tensor] = found
            while self._kept_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return found

    def piece(self, tensor: int, piece: int) -> bytes:
        """The bytes of one piece; ModelNotFoundError where it is not here (any more)."""
        entry = self._entry(tensor)
        if piece >= entry.num_pieces:
            raise ModelNotFoundError(f"tensor {entry.name!r} has {counted(entry.num_pieces, 'piece')}, asked for number {piece}")
        for _attempt in range(2):  # a shard that became whole in between has another name now
            place = self._locate(tensor)
            if place is None:
                break
            try:
                with place[0].open("rb", buffering=0) as file:
                    file.seek(place[1] + piece * PIECE_BYTES)
                    data = file.read(entry.piece_bytes(piece))
            except FileNotFoundError:
                continue
            if len(data) != entry.piece_bytes(piece):
                raise CheckpointError(f"tensor {entry.name!r} is cut off at this peer; ask another one")
            return data
        raise ModelNotFoundError(f"tensor {entry.name!r} is not at this peer; ask another one")

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
