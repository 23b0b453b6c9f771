"""A swarm trains like one process: replicas, Muon, a death, families."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from swarm.models.checkpoint import open_checkpoint
from tests.families import make_checkpoint
from tests.node.training.learning import RUN, Counting, local_run, spec_of, stages_of, worst
from tests.node.training.run_nodes import RunNode, running
from tests.node.training.test_local import llama

STEPS = 20
FAMILY_STEPS, DEATH_AFTER = 14, 5
"""By hand with 50 and 20: about 10 s for each family."""
TWO = ((0, 1), (1, 2))


@pytest.mark.parametrize(("spans", "optimizer"), [(TWO * 2, "adamw"), (TWO * 2, "muon")])
async def test_a_swarm_has_the_losses_of_one_process(spans: tuple[tuple[int, int], ...], optimizer: str, tmp_path: Path) -> None:
    folder, spec, batches = llama(tmp_path / "model", is_tied=False), spec_of(STEPS, optimizer, num_micro_batches=2), Counting(2)
    alone = local_run(folder, spec, batches)
    expected = [step.loss_sum / step.num_targets for step in (alone.step() for _ in range(STEPS))]
    async with running(RUN, spec, stages_of(folder, spans), 2, tmp_path, batches.drawn) as (nodes, trainer):
        await trainer.train(STEPS)
        difference = worst(trainer.losses, expected)
        print(len(spans), "stages,", optimizer, "losses differ by", difference)
        assert difference < 1e-4 and expected[-1] < 0.9 * expected[0]
        await check_equal(nodes)
        assert {node.trained.contribution.num_versions for node in nodes} == {STEPS}, (
            "a stage of two groups counts a version once"
        )


async def check_equal(nodes: list[RunNode]) -> None:
    """All replicas of a unit have the same bits."""
    digests: dict[object, set[bytes]] = {}
    for node in nodes:
        for unit in node.units.states:
            digests.setdefault(unit, set()).add((await node.take(unit, None)).digest)
    assert all(len(one) == 1 for one in digests.values())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text"])
async def test_a_family_trains_through_two_nodes_with_a_death(family: str, tmp_path: Path) -> None:
    folder, spec, batches = make_checkpoint(family, tmp_path / "model"), spec_of(FAMILY_STEPS, num_micro_batches=2), Counting(2)
    alone, num_blocks = local_run(folder, spec, batches), open_checkpoint(folder).num_blocks
    expected = [step.loss_sum / step.num_targets for step in (alone.step() for _ in range(FAMILY_STEPS))]
    spans = ((0, num_blocks // 2), (num_blocks // 2, num_blocks), (0, num_blocks // 2))
    async with running(RUN, spec, stages_of(folder, spans), num_blocks, tmp_path, batches.drawn) as (nodes, trainer):
        await trainer.train(DEATH_AFTER)
        training = asyncio.ensure_future(trainer.train(FAMILY_STEPS))
        while len(trainer.finished) <= DEATH_AFTER and not training.done():  # noqa: ASYNC110  (no event tells of a step)
            await asyncio.sleep(0.01)
        assert not training.done()
        await nodes.pop(0).stop()
        await training
        assert min(one.num_stages for one in trainer.finished) == 2, "the death was not noticed"
        difference = worst(trainer.losses, expected)
        print(family, expected[0], expected[-1], "losses differ by", difference)
        assert expected[-1] < expected[0] and difference < 1e-2
        await check_equal(nodes)
