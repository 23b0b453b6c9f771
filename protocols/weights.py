"""The manifest of one set of weights, and its digest.

Canonical form, whose SHA-256 is the model's digest (UTF-8, a line end after every line, nothing else; frozen by a test):

    murmuration manifest 1
    config {"architectures":["LlamaForCausalLM"],…}            canonical_config()
    run {"activations":"float32",…}                            of a training run only: RunSpec.canonical()
    file <64 hex of SHA-256> <name>                            tokenizer, template and generation config
    tensor <64 hex of root> <dtype> <[2,3]> <name>             sorted by name; dtype as safetensors spells it (`BF16`)

A tensor's root is SHA-256 over the SHA-256s of its 1 MiB pieces: pieces are checked alone, files may be split in any way.
Of a training run the tensors are those of version 0 (`runs.py`).
Everything is raw stored bytes: a cast would be another model. Names come last in a line, hence may hold spaces, never a line end.
On the wire the canonical bytes are the only buffer of a frame, so bounds are checked on bytes before any entry is built.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

from protocols import fields, frame, runs
from protocols.errors import BadRequestError, ModelMismatchError, ModelNotSupportedError
from protocols.ids import ModelId
from protocols.runs import RunSpec
from protocols.words import counted

PIECE_BYTES: Final = 1 << 20
"""Bytes of a tensor that are hashed, fetched and checked together; the last piece may be shorter."""

ITEM_BYTES: Final = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Bytes of one value, by dtype as safetensors spells it; others are not served."""

MAX_TENSORS: Final = 200_000
MAX_FILES: Final = 64
MAX_MANIFEST_BYTES: Final = (64 << 20) - 4_096
"""Of the canonical form: a frame's limit, less its header."""
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_NAME: Final = 300

_MAGIC = b"murmuration manifest 1"
_RUN = b"run "
_MIN_LINE = 70
"""Bytes of the shortest line of a tensor or file: nothing is split into more than there can be."""
_HASH_BYTES = 32
_DTYPE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
_SHAPE = re.compile(rb"\[((?:0|[1-9][0-9]{0,14})(?:,(?:0|[1-9][0-9]{0,14})){0,7})?\]")
_MAX_DIM = 10**15 - 1
_MAX_DIMS = 8
_IGNORED_CONFIG = ("transformers_version", "_name_or_path")
"""Who saved the config, and from where: not part of what the model is."""


class TensorEntry(NamedTuple):
    """One stored tensor: its name in the checkpoint, dtype as safetensors spells it, shape, and root (32 bytes)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    root: bytes

    @property
    def num_bytes(self) -> int:
        """As stored. ModelNotSupportedError if the dtype is none of ITEM_BYTES."""
        if self.dtype not in ITEM_BYTES:
            raise ModelNotSupportedError(f"tensor {self.name!r} is stored as {self.dtype}; known are {', '.join(ITEM_BYTES)}")
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def num_pieces(self) -> int:
        return -(-self.num_bytes // PIECE_BYTES)

    def piece_bytes(self, piece: int) -> int:
        """Length of one piece: PIECE_BYTES, or less for the last."""
        return min(PIECE_BYTES, self.num_bytes - piece * PIECE_BYTES)


class FileEntry(NamedTuple):
    """One file of the tokenizer or the generation config: its path below the checkpoint, with `/`, and its SHA-256 (32 bytes)."""

    name: str
    sha256: bytes


def tensor_root(piece_hashes: Iterable[bytes]) -> bytes:
    """SHA-256 over the SHA-256s (32 bytes each) of a tensor's pieces in order; an empty tensor has no pieces."""
    root = hashlib.sha256()
    for piece in piece_hashes:
        assert len(piece) == _HASH_BYTES
        root.update(piece)
    return root.digest()


def canonical_config(config: Mapping[str, object]) -> bytes:
    """A `config.json` as bytes that do not depend on who saved it: sorted keys, no spaces, ASCII, `_IGNORED_CONFIG` left out."""

    def kept(value: object) -> object:
        if isinstance(value, dict):
            return {key: kept(inner) for key, inner in value.items() if key not in _IGNORED_CONFIG}
        return [kept(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(kept(dict(config)), sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


@dataclass(frozen=True)
class Manifest:
    """All that a digest stands for. Construction checks every bound, so whatever exists can be trusted in form."""

    entries: tuple[TensorEntry, ...]
    """Sorted by name, each name once."""
    config: bytes
    """As `canonical_config` makes it."""
    files: tuple[FileEntry, ...] = ()
    """Sorted by name, each name once."""
    run: RunSpec | None = None
    """How this model is trained; None = a model whose weights do not change."""

    def __post_init__(self) -> None:
        _check_config(self.config)
        _check_order("tensor", [entry.name for entry in self.entries], MAX_TENSORS)
        _check_order("file", [entry.name for entry in self.files], MAX_FILES)
        for entry in self.entries:
            _check_entry(entry)
        for file in self.files:
            _check_file(file)

    @cached_property
    def digest(self) -> str:
        """64 hex letters; what follows the `@` of a model's name."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The bytes that are hashed; BadRequestError above 64 MB."""
        lines = [_MAGIC, b"config " + self.config]
        lines += [] if self.run is None else [_RUN + self.run.canonical()]
        lines += [f"file {file.sha256.hex()} {file.name}".encode() for file in self.files]
        lines += [f"tensor {e.root.hex()} {e.dtype} {_shape_text(e.shape)} {e.name}".encode() for e in self.entries]
        data = b"\n".join(lines) + b"\n"
        if len(data) > MAX_MANIFEST_BYTES:
            raise BadRequestError(
                f"a manifest has at most {MAX_MANIFEST_BYTES} bytes, got {len(data)} for {counted(len(self.entries), 'tensor')}"
            )
        return data

    def encode(self) -> bytes:
        return frame.encode({"t": "manifest"}, [self.canonical()])

    @classmethod
    def parse(cls, data: bytes, digest: str = "") -> Manifest:
        """What a peer sent. digest: of the manifest that was asked for; ModelMismatchError, before a word is read, if it is another one."""
        received = frame.decode_kind(data, "manifest")
        (buffer,) = frame.buffers_of(received, 1)
        found = hashlib.sha256(buffer).hexdigest() if digest else ""
        if found != digest:
            raise ModelMismatchError(f"sent the manifest of {found[:12]}…, not that of {digest[:12]}…; ask another peer")
        return cls.from_canonical(bytes(buffer))

    @classmethod
    def from_canonical(cls, data: bytes) -> Manifest:
        """Read the canonical form; BadRequestError if any byte differs from how `canonical` would write it."""
        if len(data) > MAX_MANIFEST_BYTES or data.count(b"\n") > min(MAX_TENSORS + MAX_FILES, len(data) // _MIN_LINE) + 3:
            raise BadRequestError(
                f"a manifest has at most {MAX_TENSORS} tensors and {MAX_MANIFEST_BYTES} bytes, got {len(data)} bytes"
            )
        lines = data.split(b"\n")
        if len(lines) < 3 or lines[0] != _MAGIC or not lines[1].startswith(b"config ") or lines.pop():
            raise BadRequestError(f"a manifest begins with {_MAGIC!r} and a config, and ends with a line end, got {data[:40]!r}")
        run = RunSpec.parse(lines.pop(2).removeprefix(_RUN)) if lines[2:] and lines[2].startswith(_RUN) else None
        num_files = next((i for i, line in enumerate(lines[2:]) if not line.startswith(b"file ")), len(lines) - 2)
        if num_files > MAX_FILES:
            raise BadRequestError(f"a manifest has at most {MAX_FILES} files, got {num_files}")
        files = tuple(_parse_file(line) for line in lines[2 : 2 + num_files])
        return cls(tuple(_parse_entry(line) for line in lines[2 + num_files :]), lines[1].removeprefix(b"config "), files, run)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _parse_entry(line: bytes) -> TensorEntry:
    parts = line.split(b" ", 4)
    if len(parts) != 5 or parts[0] != b"tensor" or not _SHAPE.fullmatch(parts[3]):
        raise BadRequestError(f"a manifest's line is `tensor root dtype shape name`, got {line[:100]!r}")
    shape = tuple(int(dim) for dim in parts[3][1:-1].split(b",") if dim)
    return TensorEntry(_text(parts[4]), _text(parts[2]), shape, _hash(parts[1]))


def _parse_file(line: bytes) -> FileEntry:
    parts = line.split(b" ", 2)
    if len(parts) != 3:
        raise BadRequestError(f"a manifest's line is `file sha256 name`, got {line[:100]!r}")
    return FileEntry(_text(parts[2]), _hash(parts[1]))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise BadRequestError(f"a manifest is UTF-8, got {data[:60]!r}") from None


def _hash(data: bytes) -> bytes:
    if not re.fullmatch(rb"[0-9a-f]{64}", data):
        raise BadRequestError(f"a hash is 64 hex letters, got {data[:80]!r}")
    return bytes.fromhex(data.decode())


def _check_order(kind: str, names: list[str], most: int) -> None:
    if len(names) > most:
        raise BadRequestError(f"a manifest has at most {most} {kind}s, got {len(names)}")
    for name in names:
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise BadRequestError(f"a {kind}'s name is 1 to {MAX_NAME} printable letters, got {name[:80]!r}")
    for before, after in pairwise(names):
        if before >= after:
            raise BadRequestError(f"a manifest's {kind}s are sorted by name, each once; {after[:80]!r} follows {before[:80]!r}")


def _check_entry(entry: TensorEntry) -> None:
    if not _DTYPE.fullmatch(entry.dtype) or len(entry.root) != _HASH_BYTES:
        raise BadRequestError(
            f"tensor {entry.name!r}: a dtype as in BF16 and a root of 32 bytes, got {entry.dtype[:20]!r}, {len(entry.root)} bytes"
        )
    if len(entry.shape) > _MAX_DIMS or not all(type(dim) is int and 0 <= dim <= _MAX_DIM for dim in entry.shape):
        raise BadRequestError(f"tensor {entry.name!r}: at most {_MAX_DIMS} dimensions below 10**15, got {list(entry.shape)[:10]}")


def _check_file(file: FileEntry) -> None:
    parts = file.name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in file.name or ":" in file.name:
        raise BadRequestError(
            f"a file's name is a plain path below the checkpoint, got {file.name!r}"
        )  # it may be written to disk
    if len(file.sha256) != _HASH_BYTES:
        raise BadRequestError(f"file {file.name!r}: a SHA-256 has 32 bytes, got {len(file.sha256)}")


def _check_config(config: bytes) -> None:
    if len(config) > MAX_CONFIG_BYTES:
        raise BadRequestError(f"a config has at most {MAX_CONFIG_BYTES} bytes, got {len(config)}")
    try:
        value = json.loads(config)
        is_canonical = isinstance(value, dict) and canonical_config(value) == config
    except (ValueError, RecursionError):
        is_canonical = False
    if not is_canonical:
        raise BadRequestError(f"a manifest's config is canonical JSON (sorted keys, no spaces), got {config[:60]!r}")


def difference(mine: Manifest, theirs: Manifest) -> str | None:
    """The first thing in which two manifests differ, for people; None if they are the same."""
    ours, others = {e.name: e for e in mine.entries}, {e.name: e for e in theirs.entries}
    for name in sorted(ours.keys() | others.keys()):
        if ours.get(name) != others.get(name):
            return f"tensor {name!r}: ours is {_described(ours.get(name))}, theirs is {_described(others.get(name))}"
    if mine.config != theirs.config:
        return f"config: {_config_difference(json.loads(mine.config), json.loads(theirs.config))}"
    if mine.run is None or theirs.run is None:
        if mine.run != theirs.run:
            return f"{'ours' if mine.run else 'theirs'} is a training run, the other is not"
    elif (found := runs.difference(mine.run, theirs.run)) is not None:
        return f"run: {found}"
    our_files, their_files = dict(mine.files), dict(theirs.files)
    for name in sorted(our_files.keys() | their_files.keys()):
        if our_files.get(name) != their_files.get(name):
            return f"file {name!r} differs, or one side lacks it"
    return None


def _described(entry: TensorEntry | None) -> str:
    return "absent" if entry is None else f"{entry.dtype} {_shape_text(entry.shape)} {entry.root.hex()[:12]}…"


def _config_difference(ours: dict[str, object], theirs: dict[str, object]) -> str:
    for key in sorted(ours.keys() | theirs.keys()):
        if key not in ours or key not in theirs or json.dumps(ours[key]) != json.dumps(theirs[key]):
            return f"{key!r} is {str(ours.get(key))[:60]} here, {str(theirs.get(key))[:60]} there"
    return "the same values, written differently"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRequest:
    """Please send the manifest of this model."""

    model: ModelId

    def encode(self) -> bytes:
        return frame.encode({"t": "manifest?", "model": str(self.model)})

    @classmethod
    def parse(cls, data: bytes) -> ManifestRequest:
        return cls(model=fields.model(frame.decode_kind(data, "manifest?").header, "model"))
