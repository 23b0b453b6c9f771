"""A swarm of real engines on loopback, in this process.

gRPC, sessions and batching are the real ones; only the DHT is a list.

For what needs many models or an inside look; `processes.py` has the real commands.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from node.engines.ends_selftest import choose_ends
from node.engines.engine import choose_engine
from protocols.ids import ModelId, Span
from swarm.checkpoints.digest import build_manifest
from swarm.client.connection import SwarmBackend
from swarm.client.loop import background_loop
from swarm.client.model import build
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.models.parts import SpanParts
from tests.swarm.inference.toy import ToySwarm

T = TypeVar("T")
LIMIT_BYTES = 64 << 20


class WireSwarm:
    """`spans` of a checkpoint at as many nodes, and `model`: the Hugging Face class whose blocks they are.

    with_ends: outer spans host embedding and head too, and `thin` is a model without any weights.
    """

    def __init__(
        self,
        path: Path,
        spans: Sequence[tuple[int, int]],
        dtype: torch.dtype = torch.float32,
        chunk_tokens: int = 128,
        with_ends: bool = False,
    ) -> None:
        self._loop, checkpoint = background_loop(), open_checkpoint(path)
        manifest = build_manifest(checkpoint, path)
        self.toys = self._loop.run(_make(ModelId(checkpoint.name, manifest.digest), checkpoint.num_blocks, manifest))
        for start, stop in spans:
            span, parts = load_parts(checkpoint, Span(start, stop), dtype=dtype)
            engine = choose_engine(span, LIMIT_BYTES)
            is_outer = start == 0 or stop == checkpoint.num_blocks
            ends = choose_ends(load_ends(checkpoint, dtype=dtype), checkpoint.vocab_size) if with_ends and is_outer else None
            self._loop.run(self.toys.add(engine, Span(start, stop), ends=ends, make_part=_part_maker(parts)))
        self.sizes = {"hidden_size": checkpoint.hidden_size, "vocab_size": checkpoint.vocab_size}
        self.backend = SwarmBackend(
            self._loop,
            lambda: None,
            lambda blocks: self.toys.session(chunk_tokens=chunk_tokens, blocks=blocks, **self.sizes),
            self.toys.model,
            dtype,
        )
        self.model: Any = build(load_ends(checkpoint, dtype=dtype), checkpoint, self.backend)
        self.thin: Any = build_thin(checkpoint, self.backend) if with_ends else None

    @property
    def nodes(self) -> list[Any]:
        return self.toys.nodes

    def kill(self, index: int) -> None:
        """As if that node's process had died."""
        self._loop.run(self.toys.nodes[index].kill())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """On the loop where everything of this swarm lives."""
        return self._loop.run(coroutine)

    def close(self) -> None:
        self.model.close()
        self._loop.run(self.toys.stop())


def _part_maker(parts: SpanParts) -> Any:
    return lambda part, limit_bytes: choose_engine(parts.cut(part), limit_bytes)


async def _make(model: ModelId, num_blocks: int, manifest: Any) -> ToySwarm:
    return ToySwarm(model, num_blocks, manifest)
