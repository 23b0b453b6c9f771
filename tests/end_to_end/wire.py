"""A swarm of real engines on loopback, in this process.

gRPC, sessions and batching are the real ones; only the DHT is a list.

For what needs many models or an inside look; `processes.py` has the real commands.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from node.serving import unit_engines
from node.serving.host import HostEngines
from node.units.host_units import HostUnits
from node.units.loaded import LoadedUnit
from protocols.ids import ModelId, Span
from protocols.units import Blocks, Ends
from protocols.weights_id import Weights
from swarm.checkpoints.digest import build_manifest
from swarm.client.loop import background_loop
from swarm.client.model import build
from swarm.client.remote_pass import PassWays
from swarm.client.swarm_backend import SwarmBackend
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.waiting import Waits
from tests.swarm.inference.toy import ToyNode, ToySwarm

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
        self.path, self.dtype = path, dtype
        for start, stop in spans:
            self.add(start, stop, with_ends=with_ends and (start == 0 or stop == checkpoint.num_blocks))
        self.sizes = {"hidden_size": checkpoint.hidden_size, "vocab_size": checkpoint.vocab_size}
        self.backend = SwarmBackend(
            self._loop,
            lambda: None,
            lambda blocks: self.toys.session(chunk_tokens=chunk_tokens, blocks=blocks, **self.sizes),
            self.toys.model,
            dtype,
            self.ways(),
        )
        self.model: Any = build(load_ends(checkpoint, dtype=dtype), checkpoint, self.backend)
        self.thin: Any = build_thin(checkpoint, self.backend) if with_ends else None

    def add(self, start: int, stop: int, *, with_ends: bool = False) -> ToyNode:
        """One more node with these blocks."""
        checkpoint, dtype, weights = open_checkpoint(self.path), self.dtype, Weights(self.toys.model)
        blocks = LoadedUnit(Blocks(start, stop), load_parts(checkpoint, Span(start, stop), dtype=dtype)[1], weights)
        ends = LoadedUnit(Ends(), load_ends(checkpoint, dtype=dtype), weights) if with_ends else None
        engines = unit_engines.build(HostUnits(blocks=blocks, ends=ends), LIMIT_BYTES, checkpoint.vocab_size)
        node: ToyNode = self._loop.run(
            self.toys.add(
                HostEngines(engines.engine, engines.ends, engines.make_part, source=engines), Span(start, stop),
                max_positions=checkpoint.max_positions,
            )
        )  # fmt: skip
        return node

    def ways(self, route_timeout_s: float = 10.0) -> PassWays:
        """Of differentiable passes by this swarm's client."""
        dtype = str(self.dtype).removeprefix("torch.")
        return PassWays(
            router=self.toys.router, pool=self.toys.pool, identity=self.toys.identity, dtype=dtype,
            route_timeout_s=route_timeout_s, waits=Waits(),
        )  # fmt: skip

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


async def _make(model: ModelId, num_blocks: int, manifest: Any) -> ToySwarm:
    return ToySwarm(model, num_blocks, manifest)
