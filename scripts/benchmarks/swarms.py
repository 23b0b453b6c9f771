"""Swarms of real node processes on this machine, and their clients.

The nodes of a swarm share a model's blocks evenly.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volunteers import Node, console, start_node, stop

from benchmarks.models import Shape, checkpoint


@dataclass(kw_only=True)
class Swarms:
    """Everything that a section starts; ends with it."""

    folder: Path
    nodes: list[Node] = field(default_factory=list)
    models: list[Any] = field(default_factory=list)

    def path(self, shape: Shape) -> Path:
        """The model's checkpoint."""
        return checkpoint(shape, self.folder)

    def start(self, shape: Shape, num_nodes: int) -> list[Node]:
        """A swarm of its own with so many nodes, ready to serve."""
        model, share = self.path(shape), shape.blocks // num_nodes
        place = Path(tempfile.mkdtemp(prefix=f"{shape.name}-{num_nodes}-", dir=self.folder))
        nodes: list[Node] = []
        with console.status(f"{shape.name}: a swarm of {num_nodes} starts"):
            for index in range(num_nodes):
                peers = [nodes[0].wait_for("multiaddr")] if nodes else []
                span = f"{index * share}:{(index + 1) * share}"
                nodes.append(start_node(f"node{index}", span, model, peers, place))
                self.nodes.append(nodes[-1])
            for node in nodes:
                node.wait_for("ready")
        return nodes

    def connect(self, shape: Shape, nodes: list[Node]) -> Any:
        """A model whose blocks are at these nodes."""
        from swarm.client import SwarmModelForCausalLM

        peers = [nodes[0].wait_for("multiaddr")]
        self.models.append(SwarmModelForCausalLM.from_pretrained(self.path(shape), peers=peers, dtype="float32"))
        return self.models[-1]

    def stop_all(self) -> None:
        """End whatever runs."""
        for model in self.models:
            model.close()
        stop(self.nodes)
        self.models, self.nodes = [], []


@contextlib.contextmanager
def running_swarms(folder: Path) -> Iterator[Swarms]:
    """Checkpoints are kept in `folder` from section to section; whatever was started ends with the block."""
    place = Swarms(folder=folder)
    try:
        yield place
    finally:
        place.stop_all()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="murmuration-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
