"""Asking a peer for the state of units: parameters and optimizer state.

    the one who asks                 the one who has
    state? (run, units, version)  →  state: unit, version, chain, form and digest; then state_part, one message each: at most 4 MiB
                                     and so on, for each unit in the order in which they were asked for

The *form* of a state lists its tensors: dtype, shape and name, one line each (UTF-8, a line end after every line):

    F32 [64,64] parameter/3.self_attn.q_proj.weight

`parameter/NAME` is what a checkpoint stores of the unit, frozen tensors included; any other first word is a kind of optimizer state
(`momentum/NAME`). Tensors are sorted by the size of their values, the largest first, then by name. Their bytes (little-endian,
row-major) follow each other without holes, so every value is aligned. The digest covers unit, version, chain, form and bytes.
Replicas of a unit at one version have the same digest. It says that a copy is whole, and proves nothing about its sender.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from protocols import fields, frame
from protocols.errors import BadRequestError, FrameError, shown
from protocols.ids import ModelId
from protocols.units import MAX_UNIT_TEXT, Unit, parse_unit
from protocols.weights import ITEM_BYTES, MAX_NAME
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION

PART_BYTES: Final = (4 << 20) - 1024
"""Bytes of a state in one message, at most: with its header it is within MAX_PART_BYTES."""

MAX_UNITS: Final = 64
"""Units of one request."""

MAX_TENSORS: Final = 1 << 15
"""Of one unit's state."""

MAX_FORM_BYTES: Final = 4 << 20
MAX_STATE_BYTES: Final = 1 << 42
"""Of one unit's state: 4 TiB."""

DIGEST_BYTES: Final = 32
_MAGIC = b"murmuration state 1\n"
_MIN_LINE = len("U8 [] p/n\n")
_LINE = re.compile(rb"([A-Z][A-Z0-9_]{0,15}) \[((?:0|[1-9][0-9]{0,12})(?:,(?:0|[1-9][0-9]{0,12})){0,7})?\] (.+)")
_KIND = re.compile("[a-z][a-z0-9_]{0,31}")


class TensorForm(NamedTuple):
    """One tensor of a state: its name (`parameter/…`), dtype as safetensors spells it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def order(self) -> tuple[int, str]:
        """The key by which the tensors of a state are sorted."""
        return -ITEM_BYTES[self.dtype], self.name


@dataclass(frozen=True, slots=True)
class Form:
    """The tensors of one unit's state in the order of their bytes. BadRequestError if a bound is passed, or they are out of order."""

    tensors: tuple[TensorForm, ...]

    def __post_init__(self) -> None:
        if len(self.tensors) > MAX_TENSORS:
            raise BadRequestError(f"a state has at most {MAX_TENSORS} tensors, got {len(self.tensors)}")
        before: tuple[int, str] | None = None
        for tensor in self.tensors:
            _check_tensor(tensor)
            if before is not None and before >= tensor.order:
                raise BadRequestError(
                    f"tensors of a state are sorted by size of a value, then name; got {tensor.name!r} out of order"
                )
            before = tensor.order
        if self.num_bytes > MAX_STATE_BYTES:
            raise BadRequestError(f"a state has at most {MAX_STATE_BYTES} bytes, got {self.num_bytes}")

    @classmethod
    def of(cls, tensors: Iterable[TensorForm]) -> Form:
        """The same tensors in their order."""
        return cls(tuple(sorted(tensors, key=lambda tensor: tensor.order)))

    @property
    def num_bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    def canonical(self) -> bytes:
        """The lines; BadRequestError above MAX_FORM_BYTES."""
        lines = (f"{one.dtype} [{','.join(map(str, one.shape))}] {one.name}\n" for one in self.tensors)
        data = "".join(lines).encode()
        if len(data) > MAX_FORM_BYTES:
            raise BadRequestError(f"the form of a state has at most {MAX_FORM_BYTES} bytes, got {len(data)}")
        return data

    @classmethod
    def parse(cls, data: bytes) -> Form:
        """Read the canonical lines; BadRequestError if any byte differs from how `canonical` would write it."""
        if len(data) > MAX_FORM_BYTES or data.count(b"\n") > min(MAX_TENSORS, len(data) // _MIN_LINE):
            raise BadRequestError(
                f"the form of a state has at most {MAX_TENSORS} lines and {MAX_FORM_BYTES} bytes, got {len(data)} bytes"
            )
        *lines, rest = data.split(b"\n")
        if rest:
            raise BadRequestError(f"the form of a state ends with a line end, got {rest[:60]!r}")
        return cls(tuple(_parse_line(line) for line in lines))


def _parse_line(line: bytes) -> TensorForm:
    match = _LINE.fullmatch(line)
    if match is None:
        raise BadRequestError(f"a line of a state's form is `dtype shape name`, got {line[:100]!r}")
    try:
        name = match[3].decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"the form of a state is UTF-8, got {line[:60]!r}") from None
    return TensorForm(name, match[1].decode(), tuple(int(dim) for dim in (match[2] or b"").split(b",") if dim))


def _check_tensor(tensor: TensorForm) -> None:
    kind, slash, name = tensor.name.partition("/")
    if not slash or not _KIND.fullmatch(kind) or not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise BadRequestError(
            f"a tensor of a state is called kind/name with at most {MAX_NAME} printable letters, got {tensor.name[:80]!r}"
        )
    if tensor.dtype not in ITEM_BYTES:
        raise BadRequestError(f"tensor {tensor.name!r} has dtype {tensor.dtype[:20]!r}; known are {', '.join(ITEM_BYTES)}")
    if len(tensor.shape) > 8 or not all(0 <= dim < 10**13 for dim in tensor.shape):
        raise BadRequestError(f"tensor {tensor.name!r}: at most 8 dimensions below 10**13, got {list(tensor.shape)[:10]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateRequest:
    """The state of these units of this run, please, one after the other."""

    run: ModelId
    units: tuple[Unit, ...]
    """Each once, 1 to MAX_UNITS."""
    version: int | None = None
    """None: of each unit the newest that it has."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.units) <= MAX_UNITS or len(set(self.units)) != len(self.units):
            raise BadRequestError(f"state is asked for of 1 to {MAX_UNITS} units, each once, got {len(self.units)}")

    def encode(self) -> bytes:
        asked = {} if self.version is None else {"v": self.version}
        return frame.encode({"t": "state?", "run": str(self.run), "u": [str(unit) for unit in self.units], **asked})

    @classmethod
    def parse(cls, data: bytes) -> StateRequest:
        header = frame.decode_kind(data, "state?").header
        units = tuple(parse_unit(text) for text in fields.texts(header, "u", MAX_UNITS, MAX_UNIT_TEXT))
        version = fields.integer(header, "v", 0, MAX_VERSION) if header.get("v") is not None else None
        return cls(run=fields.model(header, "run"), units=units, version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateHeader:
    """What follows: one unit's state of one version. BadRequestError if the chain does not go with the version."""

    unit: Unit
    version: int
    """Optimizer steps that were applied."""
    chain: bytes
    """Of version 0 nothing; else 32 bytes (`weights_id.py`)."""
    form: Form
    digest: bytes
    """As `state_hash` begins it; 32 bytes."""

    def __post_init__(self) -> None:
        if len(self.chain) != (CHAIN_BYTES if self.version else 0) or len(self.digest) != DIGEST_BYTES:
            raise BadRequestError(
                f"version {self.version} has a chain of {CHAIN_BYTES if self.version else 0} bytes and a digest of {DIGEST_BYTES}, "
                f"got {len(self.chain)} and {len(self.digest)}"
            )

    def encode(self) -> bytes:
        header = {"t": "state", "u": str(self.unit), "v": self.version, "c": self.chain, "d": self.digest}
        return frame.encode(header, [self.form.canonical()])


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """Bytes of the state from `offset` on; at least one, so that parts cannot come without end."""

    offset: int
    data: bytes | memoryview

    def encode(self) -> bytes:
        return frame.encode({"t": "state_part", "o": self.offset}, [self.data])


def parse_answer(data: bytes) -> StateHeader | StatePart:
    """An answer; what it claims is still to be compared with what the receiver knows of the unit (`state_download.py`)."""
    received = frame.decode(data)
    header = received.header
    (buffer,) = frame.buffers_of(received, 1)
    match header.get("t"):
        case "state":
            return StateHeader(
                unit=parse_unit(header.get("u")),
                version=fields.integer(header, "v", 0, MAX_VERSION),
                chain=fields.raw(header, "c", CHAIN_BYTES),
                form=Form.parse(bytes(buffer)),
                digest=fields.raw(header, "d", DIGEST_BYTES),
            )
        case "state_part":
            if not 1 <= len(buffer) <= PART_BYTES:
                raise FrameError(f"a part of a state has 1 to {PART_BYTES} bytes, got {len(buffer)}")
            return StatePart(offset=fields.integer(header, "o", 0, MAX_STATE_BYTES), data=buffer)
    raise BadRequestError(f"expected an answer about state, got {shown(header.get('t'))}")


def state_hash(unit: Unit, version: int, chain: bytes, form: Form) -> Any:
    """SHA-256 of what stands before a state's bytes: `update` it with them, and its `digest()` is the state's."""
    canonical = form.canonical()
    found = hashlib.sha256(_MAGIC)
    found.update(f"{unit} {version} {chain.hex()} {len(canonical)}\n".encode())
    found.update(canonical)
    return found
