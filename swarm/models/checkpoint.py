"""A checkpoint directory: its config, and where each tensor's bytes lie, known without reading a weight.

Everything that can be wrong with files shows here, before memory is taken: a missing shard, a shard cut short, an index that
names what is not there. The safetensors headers are read by ourselves, since hashing (`digest.py`) needs byte ranges.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, raw little-endian data).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from protocols.errors import CheckpointError, ModelNotSupportedError
from protocols.ids import MAX_BLOCKS
from protocols.weights import MAX_TENSORS
from swarm.models import bounds
from swarm.models.quirks import TOWER, refuse_known

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 256 << 20
MAX_HIDDEN = 1 << 17
MAX_VOCAB = 1 << 22
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")

DTYPES: dict[str, torch.dtype] = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
"""Dtypes as safetensors spells them."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One stored tensor: `file[start:stop]` are its bytes; `dtype` as safetensors spells it (F32, BF16, …)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def num_values(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An opened directory; all files named by its index exist and have the length that their headers say."""

    path: Path
    name: str
    config: Any
    """The transformers config; copy it before changing anything."""
    raw_config: Mapping[str, Any]
    """`config.json` as it stands in the file."""
    tensors: Mapping[str, TensorInfo]
    num_blocks: int
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    """Longest sequence that is served: what the model was made for, less where its rotary table changes (`_max_positions`); None
    where the architecture has no such number."""
    block_prefix: str = field(default="")
    """What stands before a block's number in the tensors' names, as `model.layers.`."""

    @cached_property
    def block_values(self) -> tuple[int, ...]:
        """Values that each block stores."""
        values = [0] * self.num_blocks
        for name, info in self.tensors.items():
            block = self.block_of(name)
            if block is not None and block < self.num_blocks:
                values[block] += info.num_values
        return tuple(values)

    def block_of(self, name: str) -> int | None:
        """The block that a stored tensor belongs to; None for the ends."""
        if not name.startswith(self.block_prefix):
            return None
        number = name[len(self.block_prefix) :].partition(".")[0]
        return int(number) if number.isdigit() else None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory in Hugging Face form. CheckpointError names a missing, truncated or odd file; ModelNotSupportedError
    an architecture that cannot be served."""
    directory = Path(path).expanduser().resolve()
    raw = bounds.read_config(directory / "config.json")
    config = _parse_config(raw, directory)
    text = config.get_text_config(decoder=True)
    refuse_known(config.model_type, text)
    tensors = _read_tensors(directory)
    num_blocks = _size(text, "num_hidden_layers", 1, MAX_BLOCKS, directory)
    prefix = _block_prefix(tensors, num_blocks, directory)
    return Checkpoint(
        path=directory,
        name=directory.name,
        config=config,
        raw_config=raw,
        tensors=tensors,
        num_blocks=num_blocks,
        hidden_size=_size(text, "hidden_size", 1, MAX_HIDDEN, directory),
        vocab_size=_size(text, "vocab_size", 1, MAX_VOCAB, directory),
        max_positions=_max_positions(text),
        block_prefix=prefix,
    )


def _parse_config(raw: Mapping[str, Any], directory: Path) -> Any:
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ModelNotSupportedError(
            f"{directory}/config.json: model type {str(kind)[:60]!r} is unknown to transformers {transformers.__version__}; "
            "upgrade transformers, or use another model"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a config class may raise anything on values that it does not like
        raise CheckpointError(f"{directory}/config.json is no valid {kind} config: {_one_line(error)}") from error
    return config


def _size(config: Any, key: str, low: int, high: int, directory: Path) -> int:
    try:
        value = getattr(config, key, None)
    except RuntimeError as error:  # an entry that differs from block to block
        raise ModelNotSupportedError(f"{directory}/config.json: {key} is not the same for all blocks") from error
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{directory}/config.json: {key} is {str(value)[:40]}, expected an integer from {low} to {high}")
    return value


def _max_positions(text: Any) -> int | None:
    """Where sequences must end. A longrope table (phi3's 128k variants) is another one for the whole forward as soon as any token
    stands beyond `original_max_position_embeddings`: one long row would change its neighbours in a batch, and the later chunks of
    a prompt would not fit the earlier ones. So such models are served up to there."""
    rope = getattr(text, "rope_parameters", None)
    tables = [rope, *rope.values()] if isinstance(rope, dict) else []
    changes = [table.get("original_max_position_embeddings") for table in tables if _is_longrope(table)]
    limits = [limit for limit in (getattr(text, "max_position_embeddings", None), *changes) if type(limit) is int and limit > 0]
    return min(limits, default=None)


def _is_longrope(table: object) -> bool:
    return isinstance(table, dict) and table.get("rope_type") == "longrope"


def _read_tensors(directory: Path) -> dict[str, TensorInfo]:
    if not (directory / INDEX).exists():
        if not (directory / SINGLE).exists():
            others = [file.name for file in sorted(directory.glob("*.bin"))[:1]]
            hint = (
                f"; {others[0]} is a pickle, which is never loaded: convert it to safetensors"
                if others
                else ": download it again"
            )
            raise CheckpointError(f"{directory} holds neither {SINGLE} nor {INDEX}{hint}")
        return read_header(directory / SINGLE)
    weight_map, total = _read_index(directory / INDEX)
    headers: dict[str, dict[str, TensorInfo]] = {}
    for file in sorted(set(weight_map.values())):
        if not (directory / file).exists():
            raise CheckpointError(_missing(directory, file, weight_map, total))
        headers[file] = read_header(directory / file)
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise CheckpointError(f"{directory / file} does not hold tensor {name!r}, which {INDEX} places there")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _read_index(path: Path) -> tuple[dict[str, str], int | None]:
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; an index has at most {MAX_INDEX_BYTES}")
        index = json.loads(path.read_bytes())
        weight_map = index["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no safetensors index: {_one_line(error)}") from error
    odd = next((file for file in names.values() if not _FILE_NAME.fullmatch(file)), None)
    if odd is not None or not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(
            f"{path} lists {len(names)} tensors and a file named {str(odd)[:60]!r}; expected plain *.safetensors names"
        )
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return names, int(total) if isinstance(total, int | float) else None


def _missing(directory: Path, file: str, weight_map: Mapping[str, str], total: int | None) -> str:
    """The message for an absent shard: how large it should be follows from the index's total and the shards that are there."""
    count = sum(1 for place in weight_map.values() if place == file)
    others = {place for place in weight_map.values() if place != file}
    message = f"{directory / file} is missing ({count} tensors"
    if total is not None and all((directory / other).exists() for other in others):
        here = sum(
            info.stop - info.start
            for other in others
            for name, info in read_header(directory / other).items()
            if weight_map.get(name) == other
        )
        message += f", {max(total - here, 0)} bytes of data expected"
    return message + "); download the checkpoint again"


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, with absolute byte ranges; CheckpointError where header and file length disagree."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
                raise CheckpointError(
                    f"{path} has {size} bytes, expected at least {8 + length}: "
                    "it is truncated or no safetensors file; download it again"
                )
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _tensor(name, entry, path, 8 + length) for name, entry in entries.items()}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"the header of {path} is damaged: {_one_line(error)}; download it again") from error
    expected = max((info.stop for info in tensors.values()), default=8 + length)
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise CheckpointError(f"{path} has {size} bytes, expected {expected}: it is {fault}; download it again")
    return tensors


def _tensor(name: str, entry: Mapping[str, Any], path: Path, base: int) -> TensorInfo:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = entry["dtype"]
    if dtype not in DTYPES or not all(type(number) is int and number >= 0 for number in (*shape, start, stop)) or len(shape) > 8:
        raise CheckpointError(
            f"{path}: tensor {name[:100]!r} has dtype {str(dtype)[:20]!r} and shape {str(shape)[:60]}, which is not understood"
        )
    if stop - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(f"{path}: tensor {name[:100]!r} claims {stop - start} bytes for {dtype} {list(shape)}")
    return TensorInfo(name, dtype, shape, path, base + start, base + stop)


def _block_prefix(tensors: Mapping[str, TensorInfo], num_blocks: int, directory: Path) -> str:
    """The prefix before the block numbers: of all prefixes with numbers behind, the heaviest one that is no image or sound tower's.

    Every block must have a tensor: so a config cannot make us build more blocks than somebody has stored.
    """
    weight: dict[str, int] = {}
    blocks: dict[str, set[int]] = {}
    for info in tensors.values():
        match = re.match(r"(.*?(?:^|\.))(\d{1,5})\.", info.name)
        if match and int(match[2]) < num_blocks:
            weight[match[1]] = weight.get(match[1], 0) + info.num_values
            blocks.setdefault(match[1], set()).add(int(match[2]))
    prefix = max(weight, key=lambda prefix: (not TOWER.search(prefix), weight[prefix]), default="")
    absent = sorted(set(range(num_blocks)) - blocks.get(prefix, set()))
    if absent:
        raise CheckpointError(f"{directory}: config.json says {num_blocks} blocks, but no tensor of block {absent[0]} is stored")
    return prefix


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
