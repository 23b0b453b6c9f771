"""How large a model's blocks are, by manifest or directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from node.watching.config_sizes import of_config
from node.watching.what_if import Sizes
from protocols.errors import CheckpointError, ModelNotSupportedError
from protocols.ids import ModelId
from protocols.records import PeerRecord
from swarm.checkpoints import hub_cache
from swarm.checkpoints.layout import Layout
from swarm.checkpoints.numbered import block_of, block_prefix
from swarm.checkpoints.stored import read_tensors
from swarm.rpc.pool import ChannelPool
from swarm.weights.fetch import fetch_manifest


async def of_model(pool: ChannelPool, records: Sequence[PeerRecord], model: ModelId) -> Sizes:
    """Of a model that is served, by its manifest; NoRouteError if no peer gives it."""
    shards = Layout(await fetch_manifest(pool, records, model)).blocks
    return Sizes(name=model.name, num_blocks=len(shards), block_bytes=max((shard.num_bytes for shard in shards), default=0))


def of_directory(directory: Path) -> Sizes:
    """Of a checkpoint in Hugging Face form; CheckpointError if it is none. Reads headers only; blocks."""
    tensors = read_tensors(directory)
    sizes = {name: info.stop - info.start for name, info in tensors.items()}
    prefix = block_prefix(sizes.items())
    if prefix is None:
        raise CheckpointError(f"no tensor of {directory} has a number in its name, so it has no blocks")
    each: dict[int, int] = {}
    for name, size in sizes.items():
        if (number := block_of(name, prefix)) is not None:
            each[number] = each.get(number, 0) + size
    return Sizes(name=directory.name, num_blocks=max(each) + 1, block_bytes=max(each.values()))


def of_checkpoint(directory: Path, name: str) -> Sizes:
    """By the tensors that are here, or else by the config; the errors of `of_config`. Blocks for some seconds."""
    try:
        return replace(of_directory(directory), name=name)
    except CheckpointError:
        return of_config(directory, name)


def of_hub_name(name: str) -> Sizes:
    """Of what is on this machine of it, as `of_checkpoint`; ModelNotFoundError if its config is not. Nothing is fetched."""
    directory = hub_cache.cached(name)
    try:
        return of_checkpoint(directory, name)
    except (CheckpointError, ModelNotSupportedError) as error:  # where this machine's user keeps files is not for visitors
        raise type(error)(str(error).replace(str(directory), name)) from None


def of_size(num_parameters: float, num_blocks: int, bytes_each: float) -> Sizes:
    """Of a model of so many parameters in so many equal blocks; embedding and head are not counted apart."""
    size = int(num_parameters * bytes_each / num_blocks)
    return Sizes(name=f"{num_parameters / 1e9:g}B", num_blocks=num_blocks, block_bytes=size)
