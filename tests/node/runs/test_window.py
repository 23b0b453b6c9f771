"""A trainer has more micro-batches under way if the network is slow."""

from __future__ import annotations

import itertools
import random

from swarm.clock import Clock
from swarm.training.pipeline import Pipeline
from tests.node.runs.toy_swarm import HALVES, NUM, SPEC, Source, TrainerProcess, toy_swarm


async def test_passes_that_take_much_longer_than_their_computing_are_sent_more_at_once() -> None:
    """By the trainer's clock a pass takes 100 s at least; by the stages' receipts it is computed in milliseconds."""
    async with toy_swarm(*HALVES) as swarm:
        trainer = TrainerProcess(swarm.book)
        pipeline = Pipeline(
            members=trainer.members, spec=SPEC, source=Source(lambda version, index: None),
            clock=Clock(now_s=itertools.count(0.0, 100.0).__next__), rng=random.Random(0),
        )  # fmt: skip
        try:
            await pipeline.look()
            assert pipeline.window == 2 * len(HALVES)
            await pipeline.carry(0)
            assert pipeline.window == NUM
        finally:
            await trainer.pool.close()
