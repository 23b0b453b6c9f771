"""A cut network has healed: replicas of one version have different weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from protocols import compression
from protocols.ids import Span
from swarm.training.pipeline import Drawn
from tests.node.runs.toy_swarm import until
from tests.node.training.exact_stage import NUM_BLOCKS, RUN, ExactStage, bits, drawn_index, spec_of
from tests.node.training.run_nodes import RunNode, running
from tests.node.training.toy_run import batch

HALVES = (Span(0, 2), Span(2, NUM_BLOCKS))


def draw(version: int, index: int) -> Drawn:
    own = batch(drawn_index(version, index))
    return Drawn(ids=compression.pack(own.ids), labels=compression.pack(own.labels), positions=None, num_targets=own.num_targets)


def diverge(node: RunNode, chain: bytes) -> None:
    """As if it had stepped to its version with others."""
    for unit, state in node.units.states.items():
        with torch.no_grad():
            for tensor in node.trained.stage.tensors(unit).values():  # type: ignore[attr-defined]
                tensor += 1.0
        state.restore(state.version, chain)


def has_fetched(node: RunNode) -> bool:
    return any("fetched version" in event.text for event in node.events)


async def test_one_side_is_chosen_for_the_whole_model_and_the_other_takes_its_state(tmp_path: Path) -> None:
    """By their own chains, the first half of the model would go on with one side, and the second half with the other."""
    stages: list[Any] = [ExactStage(span, NUM_BLOCKS) for span in (*HALVES, *HALVES)]
    async with running(RUN, spec_of(6), stages, NUM_BLOCKS, tmp_path, draw) as (nodes, trainer):
        await trainer.train(2)
        diverge(nodes[2], bytes(32))
        diverge(nodes[3], b"\xff" * 32)
        await trainer.train(4)
        await until(lambda: {state.version for node in nodes for state in node.units.states.values()} == {4})
        state = [
            {unit: (bits(node.units.snapshot(unit)), own.chain) for unit, own in node.units.states.items()} for node in nodes
        ]
        assert state[:2] == state[2:]
        await until(lambda: all(map(has_fetched, nodes[2:])))  # it is told after the last unit
        assert not any(map(has_fetched, nodes[:2])), "the trainer has stepped the first two before"
