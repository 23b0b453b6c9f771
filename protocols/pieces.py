"""Asking a peer for weights, over one stream.

Questions go one way, answers come in the same order the other way.

    the one who asks            the one who has
    weights? (model)         →  holdings: which of the manifest's tensors are here, one bit each, and which pieces of others
    hashes? (tensors)        →  hashes, one message a tensor: the SHA-256 of each of its pieces
    pieces? (runs)           →  piece, one message each: at most 1 MiB
    file? (number)           →  file, in parts of at most 1 MiB
    weights? again           →  holdings, as they are now

Tensors and files are numbered as the manifest lists them, so no name crosses the wire. Both sides have the manifest, which bounds
everything: how many pieces a tensor has, how long each one is, how long a list of hashes. The asking side compares every length and hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocols import fields, frame
from protocols.errors import BadRequestError, FrameError, shown
from protocols.ids import ModelId
from protocols.weights import MAX_FILES, MAX_TENSORS, PIECE_BYTES, TensorEntry

MAX_ASKED: Final = 64
"""Tensors, runs or pieces in one question."""

MAX_FILE_BYTES: Final = 256 << 20
"""Of one file beside the tensors."""

MAX_PIECES: Final = (60 << 20) // 32
"""Of one tensor: so many hashes fit a frame. It stands for 1.9 TB."""

MAX_PARTIAL: Final = 64
"""Tensors of which holdings list the pieces."""

MAX_PARTIAL_BYTES: Final = 1 << 20
"""Of these lists: the pieces of 8 TB of tensors."""


class Run(NamedTuple):
    """Consecutive pieces `[first, first + num)` of one tensor."""

    tensor: int
    first: int
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsRequest:
    """Which tensors of this model have you? The first message of a stream."""

    model: ModelId

    def encode(self) -> bytes:
        return frame.encode({"t": "weights?", "model": str(self.model)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HashesRequest:
    """The piece hashes of these tensors, please."""

    tensors: tuple[int, ...]

    def encode(self) -> bytes:
        return frame.encode({"t": "hashes?", "i": list(self.tensors)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecesRequest:
    """These pieces, please, in this order; at most MAX_ASKED altogether."""

    runs: tuple[Run, ...]

    def encode(self) -> bytes:
        return frame.encode({"t": "pieces?", "r": [list(run) for run in self.runs]})


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRequest:
    """File number `file` of the manifest, please."""

    file: int

    def encode(self) -> bytes:
        return frame.encode({"t": "file?", "i": self.file})


Request = WeightsRequest | HashesRequest | PiecesRequest | FileRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What is here. Bit n of a bitmap is in byte n // 8, the lowest first."""

    bits: bytes
    """Bit n: tensor n is here, whole."""
    partial: bytes = b""
    """Pieces of tensors that are here in part, as `pack_partial` writes them; `parse_partial` reads them with the manifest."""

    def encode(self) -> bytes:
        return frame.encode({"t": "holdings"}, [self.bits, self.partial] if self.partial else [self.bits])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hashes:
    """SHA-256 of each piece of a tensor, 32 bytes each, in order."""

    tensor: int
    hashes: bytes | memoryview

    def encode(self) -> bytes:
        return frame.encode({"t": "hashes", "i": self.tensor}, [self.hashes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece, as stored."""

    tensor: int
    piece: int
    data: bytes | memoryview

    def encode(self) -> bytes:
        return frame.encode({"t": "piece", "i": self.tensor, "p": self.piece}, [self.data])


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Bytes of a file from `offset` on; `size` is the whole file's."""

    file: int
    size: int
    offset: int
    data: bytes | memoryview

    def encode(self) -> bytes:
        return frame.encode({"t": "file", "i": self.file, "n": self.size, "o": self.offset}, [self.data])


Answer = Holdings | Hashes | Piece | FilePart


def parse_request(data: bytes) -> Request:
    """A question; BadRequestError or FrameError for anything else."""
    header = frame.decode(data).header
    match header.get("t"):
        case "weights?":
            return WeightsRequest(model=fields.model(header, "model"))
        case "hashes?":
            return HashesRequest(tensors=fields.integers(header, "i", MAX_ASKED, 0, MAX_TENSORS - 1))
        case "pieces?":
            return PiecesRequest(runs=_runs(header))
        case "file?":
            return FileRequest(file=fields.integer(header, "i", 0, MAX_FILES - 1))
    raise BadRequestError(f"expected a question about weights, got {shown(header.get('t'))}")


def parse_answer(data: bytes) -> Answer:
    """An answer; its lengths are those that any model may have, so compare them with the manifest's."""
    received = frame.decode(data)
    header = received.header
    most = 2 if header.get("t") == "holdings" else 1
    if not 1 <= len(received.buffers) <= most:
        raise FrameError(f"such an answer about weights has 1 to {most} buffers, got {len(received.buffers)}")
    buffer, *others = received.buffers
    match header.get("t"):
        case "holdings":
            partial = b"".join(_bounded(other, MAX_PARTIAL_BYTES) for other in others)
            return Holdings(bits=_bounded(buffer, MAX_TENSORS // 8 + 1).tobytes(), partial=partial)
        case "hashes":
            return Hashes(tensor=_tensor(header), hashes=_bounded(buffer, 32 * MAX_PIECES))
        case "piece":
            number = fields.integer(header, "p", 0, MAX_PIECES - 1)
            return Piece(tensor=_tensor(header), piece=number, data=_bounded(buffer, PIECE_BYTES))
        case "file":
            size = fields.integer(header, "n", 0, MAX_FILE_BYTES)
            offset, data_ = fields.integer(header, "o", 0, size), _bounded(buffer, PIECE_BYTES)
            return FilePart(file=fields.integer(header, "i", 0, MAX_FILES - 1), size=size, offset=offset, data=data_)
    raise BadRequestError(f"expected an answer about weights, got {shown(header.get('t'))}")


def pack_partial(pieces: Mapping[int, bytes]) -> bytes:
    """Bitmaps of pieces, by tensor: the tensor (4 bytes, the highest first), its bitmap, and so on, tensors in order.

    What is more than MAX_PARTIAL tensors or MAX_PARTIAL_BYTES is left out, the highest tensors first.
    """
    found = bytearray()
    for tensor, bitmap in sorted(pieces.items())[:MAX_PARTIAL]:
        if len(found) + 4 + len(bitmap) > MAX_PARTIAL_BYTES:
            break
        found += tensor.to_bytes(4, "big") + bitmap
    return bytes(found)


def parse_partial(data: bytes, entries: Sequence[TensorEntry]) -> dict[int, bytes]:
    """By tensor: the bitmap of its pieces, of the length that its entry in the manifest asks for.

    BadRequestError if a tensor is not in the manifest or not after the one before it, a bitmap is cut off, or there are more than
    MAX_PARTIAL. Bits beyond the last piece are for the caller to refuse.
    """
    found: dict[int, bytes] = {}
    at, last = 0, -1
    while at < len(data):
        tensor = int.from_bytes(data[at : at + 4], "big")
        if len(found) == MAX_PARTIAL or not last < tensor < len(entries):
            raise BadRequestError(
                f"holdings list the pieces of at most {MAX_PARTIAL} tensors of {len(entries)}, in order; got {tensor} after {last}"
            )
        stop = at + 4 + -(-entries[tensor].num_pieces // 8)
        if stop > len(data):
            raise BadRequestError(f"the pieces of tensor {tensor} end at byte {stop} of the holdings, which have {len(data)}")
        found[tensor] = data[at + 4 : stop]
        at, last = stop, tensor
    return found


def _tensor(header: fields.Header) -> int:
    return fields.integer(header, "i", 0, MAX_TENSORS - 1)


def _bounded(buffer: memoryview, longest: int) -> memoryview:
    if len(buffer) > longest:
        raise FrameError(f"at most {longest} bytes are taken here, got {len(buffer)}")
    return buffer


def _runs(header: fields.Header) -> tuple[Run, ...]:
    runs = []
    for value in fields.array(header, "r", MAX_ASKED):
        if not isinstance(value, list) or len(value) != 3:
            raise BadRequestError(f"a run is [tensor, first piece, count], got {shown(value)}")
        table = dict(zip(("tensor", "first", "count"), value, strict=True))
        first = fields.integer(table, "first", 0, MAX_PIECES - 1)
        runs.append(Run(fields.integer(table, "tensor", 0, MAX_TENSORS - 1), first, fields.integer(table, "count", 1, MAX_ASKED)))
    if sum(run.num for run in runs) > MAX_ASKED:
        raise BadRequestError(f"one question is about at most {MAX_ASKED} pieces, got {sum(run.num for run in runs)}")
    return tuple(runs)
