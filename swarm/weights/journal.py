"""Journal of a shard being fetched: hashes and marks of pieces.

For each tensor of the shard, in order: the SHA-256 of each of its pieces, and a bitmap of the pieces that are stored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from protocols.errors import BadRequestError
from protocols.weights import TensorEntry, tensor_root
from swarm.weights.bitmap import Bitmap

HASH_BYTES = 32


class Journal:
    """One file, open between `open` and `close`. Blocking; one process writes it at a time."""

    def __init__(self, path: Path, tensors: Sequence[int], entries: Sequence[TensorEntry]) -> None:
        """tensors: those of the shard, in order. entries: those of the manifest."""
        self._path, self._entries = path, entries
        self._file = -1
        self._places: dict[int, int] = {}
        at = 0
        for tensor in tensors:
            self._places[tensor] = at
            at += HASH_BYTES * entries[tensor].num_pieces + -(-entries[tensor].num_pieces // 8)
        self._num_bytes = at

    @property
    def is_open(self) -> bool:
        return self._file >= 0

    def open(self) -> bool:
        """False if the file is new, or of another layout: then `reset` it before use."""
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return os.fstat(self._file).st_size == self._num_bytes

    def reset(self) -> None:
        """No hash is known, no piece marked."""
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, self._num_bytes)

    def close(self) -> None:
        """Harmless when repeated."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def hashes(self, tensor: int) -> bytes | None:
        """The list of hashes; None if it is not the one that the tensor's root stands for."""
        found = os.pread(self._file, HASH_BYTES * self._entries[tensor].num_pieces, self._places[tensor])
        root = tensor_root(found[at : at + HASH_BYTES] for at in range(0, len(found), HASH_BYTES))
        return found if root == self._entries[tensor].root else None

    def marked(self, tensor: int) -> Bitmap:
        """The pieces that are said to be stored; none if the bitmap is not whole."""
        num = self._entries[tensor].num_pieces
        try:
            return Bitmap(num, os.pread(self._file, -(-num // 8), self._places[tensor] + HASH_BYTES * num))
        except BadRequestError:
            return Bitmap(num)

    def put_hashes(self, tensor: int, hashes: bytes | memoryview) -> None:
        os.pwrite(self._file, hashes, self._places[tensor])

    def mark(self, tensor: int, piece: int, stored: Bitmap) -> None:
        """Say that a piece is stored. stored: all that are, this one included."""
        at, byte = stored.byte(piece)
        os.pwrite(self._file, byte, self._places[tensor] + HASH_BYTES * stored.num + at)
