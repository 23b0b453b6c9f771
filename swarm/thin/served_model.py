"""A model that the swarm serves, and what its small files say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from protocols.hosted import Hosted
from protocols.ids import ModelId
from protocols.tensors import COMPUTE_DTYPES
from swarm.thin import model_lookup
from swarm.thin.defaults import Defaults, read_defaults
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.weights import served
from swarm.weights.cache import ModelCache
from swarm.weights.lookup import Found


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What a thin client knows of a model before it asks for the first token."""

    id: ModelId
    blocks: Sequence[Hosted]
    """What nodes serve of it, in any version."""

    num_blocks: int
    defaults: Defaults
    tokenizer: SandboxedTokenizer
    is_in_training: bool
    """Each session takes the newest version that is served when it begins."""

    @property
    def usual_dtype(self) -> str:
        """The compute dtype in which most blocks are served."""
        return served.best_dtype(self.blocks, self.num_blocks, COMPUTE_DTYPES)


async def read(found: Found, cache: ModelCache, sandbox: Sandbox) -> ServedModel:
    """Of the files in `cache`, which may be closed afterwards; errors say what is wrong with them."""
    blocks = model_lookup.blocks_of(found)
    return ServedModel(
        id=found.model,
        blocks=blocks,
        num_blocks=model_lookup.num_blocks(blocks, len(cache.layout.blocks)),
        defaults=read_defaults(cache.directory),
        tokenizer=await asyncio.to_thread(SandboxedTokenizer, sandbox, cache.directory),
        is_in_training=cache.manifest.run is not None,
    )
