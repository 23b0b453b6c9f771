"""A newcomer whose download takes longer than a version."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from protocols import compression
from protocols.ids import Span
from protocols.units import Unit
from swarm.training.pipeline import Drawn
from swarm.training.snapshot import UnitSnapshot
from tests.node.runs.toy_swarm import until
from tests.node.training.exact_stage import NUM_BLOCKS, RUN, ExactStage, alone, bits, drawn_index, spec_of
from tests.node.training.run_nodes import RunNode, running
from tests.node.training.toy_run import batch

STEPS = 200
DRAW_S = 0.03
"""A version lasts 12 of these and more, by two at once."""


def draw(version: int, index: int) -> Drawn:
    time.sleep(DRAW_S)
    own = batch(drawn_index(version, index))
    return Drawn(ids=compression.pack(own.ids), labels=compression.pack(own.labels), positions=None, num_targets=own.num_targets)


def stage() -> Any:
    return ExactStage(Span(0, NUM_BLOCKS), NUM_BLOCKS)


async def test_a_newcomer_takes_part_though_the_run_steps_while_it_fetches(tmp_path: Path) -> None:
    """Units that it has step with the others, so each is fetched until it is early enough, and not all at once."""
    async with running(RUN, spec_of(STEPS), [stage()], NUM_BLOCKS, tmp_path, draw) as (nodes, trainer):
        (first,), num_given = nodes, 0
        take = first.take

        async def slow_take(unit: Unit, version: int | None) -> Any:
            """Every third one is given after the next step only: the state of all units at one version never comes."""
            nonlocal num_given
            num_given += 1
            if num_given % 3 == 0:
                before = first.units.version
                await until(lambda: first.units.version > before)
            return await take(unit, version)

        first.runs.states.add(RUN, slow_take)
        training = asyncio.create_task(trainer.train(STEPS, within_s=300))
        await until(lambda: first.units.version >= 1)
        newcomer = RunNode(RUN, spec_of(STEPS), stage(), NUM_BLOCKS, trainer.folder)
        nodes.append(newcomer)
        async with asyncio.timeout(120):
            await newcomer.start()
            assert newcomer.trained.is_catching_up, "it has all of one version: the download was not slow enough"
            await until(lambda: not newcomer.trained.is_catching_up)
        version = newcomer.units.version
        print("caught up at version", version)
        await until(lambda: newcomer.units.version >= version + 2)
        training.cancel()
        await asyncio.gather(training, return_exceptions=True)
        versions, found = set[int](), dict[Unit, UnitSnapshot]()
        async with asyncio.timeout(120):
            while len(versions) != 1:  # a step that the trainer has asked for ends, unit by unit
                found = await newcomer.between_steps()
                versions = {snapshot.version for snapshot in found.values()}
                await asyncio.sleep(0.01)
        assert {str(unit): bits(snapshot) for unit, snapshot in found.items()} == alone(versions.pop(), spec_of(STEPS))
