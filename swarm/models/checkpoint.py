"""A checkpoint directory: its config, and where each tensor's bytes lie.

Both are known without reading a weight.

Everything that can be wrong with files shows here, before memory is taken: a missing shard, a shard cut short, an index that
names what is not there. The files themselves are read in `stored.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import transformers

from protocols.errors import CheckpointError, ModelNotSupportedError
from protocols.ids import MAX_BLOCKS
from protocols.words import counted, described
from swarm.checkpoints import bounds
from swarm.checkpoints.layout import Layout, read_manifest
from swarm.checkpoints.numbered import block_of, block_prefix
from swarm.checkpoints.quirks import refuse_known
from swarm.checkpoints.stored import TensorInfo, read_tensors
from swarm.models.config import check_type
from swarm.places import expanded

MAX_HIDDEN = 1 << 17
MAX_VOCAB = 1 << 22


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
    """Longest sequence that is served: what the model was made for, less where its rotary table changes (`max_positions_of`); None
    if the architecture has no such number."""
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
        """The block that a stored tensor belongs to; None for embedding, norm and head."""
        return block_of(name, self.block_prefix)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory in Hugging Face form, or a model of our cache, some of whose files may not have been fetched yet
    (loading from those raises CheckpointError). CheckpointError names a missing, truncated or odd file; ModelNotSupportedError
    an architecture that cannot be served."""
    directory = expanded(path).resolve()
    raw = bounds.read_config(directory / "config.json")
    config = parse_config(raw, directory)
    text = config.get_text_config(decoder=True)
    refuse_known(config.model_type, text)
    cached = read_manifest(directory)
    tensors = read_tensors(directory) if cached is None else Layout(cached).infos(directory)
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
        max_positions=max_positions_of(text),
        block_prefix=prefix,
    )


def parse_config(raw: Mapping[str, Any], directory: Path) -> Any:
    kind = check_type(raw, f"{directory}/config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a config class may raise anything on values that it does not like
        raise CheckpointError(f"{directory}/config.json is no valid {kind} config: {described(error)}") from error
    return config


def _size(config: Any, key: str, low: int, high: int, directory: Path) -> int:
    try:
        value = getattr(config, key, None)
    except RuntimeError as error:  # an entry that differs from block to block
        raise ModelNotSupportedError(f"{directory}/config.json: {key} is not the same for all blocks") from error
    if type(value) is not int or not low <= value <= high:
        raise CheckpointError(f"{directory}/config.json: {key} is {str(value)[:40]}, expected an integer from {low} to {high}")
    return value


def max_positions_of(text: Any) -> int | None:
    """Tokens of the longest sequence of a model with this text config; None: no limit.

    A longrope table (phi3's 128k variants) is another one for the whole forward as soon as any token stands beyond
    `original_max_position_embeddings`: one long sequence would change its neighbours in a batch, and the later prefill chunks of a prompt
    would not fit the earlier ones. So such models are served up to there."""
    rope = getattr(text, "rope_parameters", None)
    tables = [rope, *rope.values()] if isinstance(rope, dict) else []
    changes = [table.get("original_max_position_embeddings") for table in tables if _is_longrope(table)]
    limits = [limit for limit in (getattr(text, "max_position_embeddings", None), *changes) if type(limit) is int and limit > 0]
    return min(limits, default=None)


def _is_longrope(table: object) -> bool:
    return isinstance(table, dict) and table.get("rope_type") == "longrope"


def _block_prefix(tensors: Mapping[str, TensorInfo], num_blocks: int, directory: Path) -> str:
    """`numbered.block_prefix`, and every block must have a tensor: a config cannot make us build more blocks than are stored."""
    prefix = block_prefix(((info.name, info.num_values) for info in tensors.values()), num_blocks) or ""
    absent = sorted(set(range(num_blocks)) - {block_of(name, prefix) for name in tensors})
    if absent:
        raise CheckpointError(
            f"{directory}: config.json says {counted(num_blocks, 'block')}, but no tensor of block {absent[0]} is stored"
        )
    return prefix
