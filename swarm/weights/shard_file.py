"""One shard of the cache while it is fetched.

It consists of the future file, named `.part`, and a journal of the pieces that were checked and stored.

`unit-00003.safetensors.part` has its header and its full length from the start; `unit-00003.journal` (`journal.py`) holds the hashes
of its pieces, and which are stored. A piece is written first and marked after, so `kill -9` at any moment loses at most pieces that were
not marked; on opening, marked pieces are hashed again, so that a power cut or a damaged disk costs only those. When all are there the
file is moved to its final name: what is called `.safetensors` is whole and verified.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from protocols.errors import CheckpointError, DiskFullError
from protocols.weights import PIECE_BYTES, Manifest
from swarm import files
from swarm.checkpoints.layout import Shard, Wanted
from swarm.checkpoints.tensor_part import ByteRanges
from swarm.suggestion import cache_command
from swarm.weights.bitmap import Bitmap
from swarm.weights.journal import HASH_BYTES, Journal


class Place(NamedTuple):
    """Where a tensor lies, whole or in part."""

    file: Path
    start: int
    """Of its first byte in the file."""
    pieces: Bitmap | None = None
    """Those that are there, if the file may still be written; None = all, in a file that is whole."""
    hashes: bytes | None = None
    """Of all its pieces, 32 bytes each, verified by its root; None = not known yet."""


class ShardFile:
    """Made by `locked`, which also finds what an earlier process has left. Blocking; methods may be called from any thread."""

    def __init__(self, directory: Path, shard: Shard, manifest: Manifest) -> None:
        self.shard = shard
        self._entries = manifest.entries
        self.final = directory / shard.file
        self.part = directory / f"{shard.file}.part"
        self._journal = Journal(self.final.with_suffix(".journal"), shard.tensors, manifest.entries)
        self._lock = threading.Lock()
        self._hashes: dict[int, bytes] = {}
        self.stored = {tensor: Bitmap(self._entries[tensor].num_pieces) for tensor in shard.tensors}
        self._starts = dict(zip(shard.tensors, shard.starts, strict=True))
        self._data = -1

    # --- what is there

    @property
    def is_complete(self) -> bool:
        return self.final.exists()

    def place(self, tensor: int) -> Place | None:
        """Where a tensor lies; None while no piece of it is here, as far as this process knows."""
        start, hashes, held = self._starts[tensor], self._hashes.get(tensor), self.stored[tensor]
        if self.is_complete:
            return Place(self.final, start, hashes=hashes)
        return None if hashes is None or not (held.count or held.is_full) else Place(self.part, start, held, hashes)

    def hashes(self, tensor: int) -> bytes | None:
        """The verified hashes of a tensor's pieces; None where they have not been fetched."""
        return self._hashes.get(tensor)

    def missing(self, wanted: Wanted) -> dict[int, tuple[int, ...]]:
        """By tensor: the wanted pieces that are not stored, as far as this process knows before `locked`."""
        return {
            tensor: tuple(piece for run in runs for piece in run if piece not in self.stored[tensor])
            for tensor, runs in wanted.pieces.items()
        }

    def has(self, wanted: Wanted) -> bool:
        """Is all of it here?"""
        return self.is_complete or (not wanted.is_whole and not any(self.missing(wanted).values()))

    def read(self, tensor: int, ranges: ByteRanges) -> bytes:
        """Bytes of a tensor, one range behind the other; CheckpointError if a piece of them is not here."""
        held = self.stored[tensor]
        if not self.is_complete and any(piece not in held for run in ranges.pieces() for piece in run):
            raise CheckpointError(
                f"tensor {self._entries[tensor].name!r}: these bytes are not in the cache; fetch the part first"
            )
        found = bytearray(ranges.num_bytes)
        if not found:
            return b""
        at = 0
        with self._opened() as file:
            for start, stop in ranges:
                file.seek(self._starts[tensor] + start)
                at += file.readinto(memoryview(found)[at : at + stop - start])
        if at != len(found):
            raise CheckpointError(f"{self.final} is cut off: {at} bytes of {len(found)}; remove it, and fetch it again")
        return bytes(found)

    def _opened(self) -> BufferedReader:
        """The file to read from. Another download may finish the shard, and so rename it, at any moment."""
        try:
            return self.part.open("rb")
        except FileNotFoundError:
            return self.final.open("rb")

    # --- opening

    @contextlib.contextmanager
    def locked(self, *, reserve: bool = True) -> Iterator[bool]:
        """Hold the shard for writing: True, or False if another process does, or it is complete. DiskFullError: the disk is full.

        reserve: allocate disk blocks for all of it at once; else the file has holes where nothing was fetched.
        """
        lock = os.open(self.final.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if self.is_complete:
                yield False
                return
            try:
                self._open(reserve)
                yield True
            finally:
                self._close()
        finally:
            os.close(lock)

    def _open(self, reserve: bool) -> None:
        with self.room_for(self.shard.num_bytes if reserve else len(self.shard.header)):
            self._data = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            is_known = self._journal.open()
            if os.fstat(self._data).st_size != self.shard.num_bytes or not is_known:
                self._journal.reset()  # of another layout, or never begun: nothing in it can be trusted
                os.ftruncate(self._data, 0)
                os.ftruncate(self._data, self.shard.num_bytes)
            if reserve and os.fstat(self._data).st_blocks * 512 < self.shard.num_bytes:
                os.posix_fallocate(self._data, 0, self.shard.num_bytes)
            os.pwrite(self._data, self.shard.header, 0)
        for tensor in self.shard.tensors:
            self.stored[tensor] = self._recalled(tensor)
        self._finish_if_full()

    def _recalled(self, tensor: int) -> Bitmap:
        """The pieces of one tensor that the journal says are stored, and that are; its hashes, too."""
        num = self._entries[tensor].num_pieces
        hashes = self._journal.hashes(tensor)
        if hashes is None:
            self._hashes.pop(tensor, None)
            return Bitmap(num)
        self._hashes[tensor] = hashes
        marked = self._journal.marked(tensor)
        right = (piece for piece in range(num) if piece in marked and self._is_piece(tensor, piece, self._read(tensor, piece)))
        return Bitmap.of(num, right)

    def _read(self, tensor: int, piece: int) -> bytes:
        return os.pread(self._data, self._entries[tensor].piece_bytes(piece), self._starts[tensor] + piece * PIECE_BYTES)

    def _is_piece(self, tensor: int, piece: int, data: bytes | memoryview) -> bool:
        hashes = self._hashes[tensor]
        return hashlib.sha256(data).digest() == hashes[HASH_BYTES * piece : HASH_BYTES * (piece + 1)]

    def _close(self) -> None:
        with self._lock:
            if self._data >= 0:
                os.close(self._data)
            self._data = -1
            self._journal.close()

    # --- storing

    def put_hashes(self, tensor: int, hashes: bytes | memoryview) -> bool:
        """Keep a tensor's piece hashes; False where they do not make its root."""
        if (
            len(hashes) != HASH_BYTES * self._entries[tensor].num_pieces
            or hashlib.sha256(hashes).digest() != self._entries[tensor].root
        ):
            return False
        with self._lock:
            if self._journal.is_open and tensor not in self._hashes:
                with self.room_for(len(hashes)):
                    self._journal.put_hashes(tensor, hashes)
                self._hashes[tensor] = bytes(hashes)
        return True

    def put(self, tensor: int, piece: int, data: bytes | memoryview) -> bool:
        """Keep one piece; False where its hash is not the one in the tensor's list (of a tensor of one piece that follows)."""
        if len(data) != self._entries[tensor].piece_bytes(piece):
            return False
        if tensor not in self._hashes and (
            self._entries[tensor].num_pieces != 1 or not self.put_hashes(tensor, hashlib.sha256(data).digest())
        ):
            return False
        if not self._is_piece(tensor, piece, data):
            return False
        with self._lock:
            stored = self.stored[tensor]
            if self._data < 0 or piece in stored:
                return True
            with self.room_for(len(data)):
                os.pwrite(self._data, data, self._starts[tensor] + piece * PIECE_BYTES)
                stored.set(piece)
                self._journal.mark(tensor, piece, stored)
            self._finish_if_full()
        return True

    def _finish_if_full(self) -> None:
        if all(bitmap.is_full for bitmap in self.stored.values()):
            os.fsync(self._data)
            self.part.replace(self.final)
            self._journal.remove()

    @contextlib.contextmanager
    def room_for(self, num_bytes: int) -> Iterator[None]:
        """Turn a full disk into an error that says what is missing."""
        try:
            yield
        except OSError as error:
            if files.is_full(error):
                raise DiskFullError(
                    f"the disk is too full for {num_bytes / 1e6:.0f} MB at {self.final.parent}; "
                    f"free some (`{cache_command(self.final.parent.parent.parent, 'prune')}`), or choose another --data-dir"
                ) from error
            raise
