"""Where each tensor's bytes lie in a directory of safetensors files.

Headers and index are read here, without torch.

Hashing and sending weights need byte ranges, which the safetensors library does not tell. Every claim of a header is checked against the
file's length before it is believed.
Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, raw little-endian data).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError
from protocols.weights import ITEM_BYTES, MAX_TENSORS
from protocols.words import counted, described

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 256 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


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


def read_tensors(directory: Path) -> dict[str, TensorInfo]:
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
        raise CheckpointError(f"{path} is no safetensors index: {described(error)}") from error
    odd = next((file for file in names.values() if not _FILE_NAME.fullmatch(file)), None)
    if odd is not None or not 0 < len(names) <= MAX_TENSORS:
        raise CheckpointError(
            f"{path} lists {counted(len(names), 'tensor')} and a file named {str(odd)[:60]!r}; expected plain *.safetensors names"
        )
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return names, int(total) if isinstance(total, int | float) else None


def _missing(directory: Path, file: str, weight_map: Mapping[str, str], total: int | None) -> str:
    """The message for an absent shard: how large it should be follows from the index's total and the shards that are there."""
    count = sum(1 for place in weight_map.values() if place == file)
    others = {place for place in weight_map.values() if place != file}
    message = f"{directory / file} is missing ({counted(count, 'tensor')}"
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
    """Tensors of one safetensors file, with absolute byte ranges; CheckpointError if header and file length disagree."""
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
        raise CheckpointError(f"the header of {path} is damaged: {described(error)}; download it again") from error
    expected = max((info.stop for info in tensors.values()), default=8 + length)
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise CheckpointError(f"{path} has {size} bytes, expected {expected}: it is {fault}; download it again")
    return tensors


def _tensor(name: str, entry: Mapping[str, Any], path: Path, base: int) -> TensorInfo:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    dtype = entry["dtype"]
    if (
        dtype not in ITEM_BYTES
        or not all(type(number) is int and number >= 0 for number in (*shape, start, stop))
        or len(shape) > 8
    ):
        raise CheckpointError(
            f"{path}: tensor {name[:100]!r} has dtype {str(dtype)[:20]!r} and shape {str(shape)[:60]}, which is not understood"
        )
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{path}: tensor {name[:100]!r} claims {stop - start} bytes for {dtype} {list(shape)}")
    return TensorInfo(name, dtype, shape, path, base + start, base + stop)
