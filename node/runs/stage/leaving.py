"""A stage leaves a run and gives its sums first.

It takes no new micro-batch, and waits for those in hand and for the step of the version that is in its sums. Trainers send micro-batches
another way at its first refusal. A version that takes longer goes on without it: what only its sums had is computed again.
"""

from __future__ import annotations

import asyncio

from node.training.servicer import TrainingServicer
from node.training.trained_stage import TrainedStage

STAYS_S = 2.5
"""Longest stay; a node that was told to leave has 4.5 s in all (`node/cli/host/node.py`)."""

LOOK_S = 0.05
"""Seconds between two looks; the device's thread changes the sums."""


async def hand_over(servicer: TrainingServicer, trained: TrainedStage) -> bool:
    """Return once nothing of the run is in hand or in the sums, or after STAYS_S; whether nothing is lost."""
    servicer.is_draining = True
    for _ in range(round(STAYS_S / LOOK_S)):
        if is_empty(trained):
            return True
        await asyncio.sleep(LOOK_S)
    return is_empty(trained)


def is_empty(trained: TrainedStage) -> bool:
    """Is no micro-batch in hand, or in the sum of any unit?"""
    return not trained.num_passes and not any(state.num_targets() for state in trained.states.values())
