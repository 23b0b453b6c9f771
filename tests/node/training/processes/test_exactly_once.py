"""Stages in processes, one killed: each micro-batch counts exactly once.

Two stages with two replicas each; a unit's group has two members, that of embedding and head four.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import ForkServer
from tests.node.training.processes.exact_swarm import NUM_VERSIONS, SPANS, swarm

MOMENTS = ("training_added:step=5", "averaging_telling", "averaging_applying", "averaging_applied")
"""The others of a group are in tests/swarm/averaging/processes."""


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_killed_stage_costs_no_micro_batch(moment: str, fork_server: ForkServer, tmp_path: Path) -> None:
    async with swarm(fork_server, tmp_path) as run:
        await run.trainer.train(1)
        (run.faults / moment).touch()
        await run.trainer.train(2)
        assert not (run.faults / moment).exists(), "no stage died"
        dead = await run.death()
        await run.add(SPANS[run.stages.index(dead) % 2])
        await run.trainer.train(NUM_VERSIONS)
        assert len(run.living) == 4
        await run.check(NUM_VERSIONS)
