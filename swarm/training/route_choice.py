"""Which stages a micro-batch goes through, as a pure function.

A stage runs from the block at which the micro-batch arrives to the end of its own span. At each block, two of the stages that lead to the
last block are drawn at random, and the one that is expected to finish sooner is taken: random, so that several trainers do not all choose
the same stage; two, so that a busy stage is avoided (Mitzenmacher 2001, "The power of two choices in randomized load balancing").
Stages that hold the micro-batch already (a redo after a death) come first.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoad:
    """One stage, and how long a micro-batch would take there."""

    peer: PeerId
    span: Span
    block_ms: float
    """Milliseconds of forward and backward of one micro-batch through one block; 0 = not measured."""
    num_waiting: int
    """Micro-batches that are there now, and those that this trainer has under way to it."""

    def finish_ms(self, start: int) -> float:
        """Expected milliseconds until a micro-batch that begins at block `start` has left the stage."""
        block_ms = self.block_ms or 1.0
        return block_ms * (self.num_waiting * len(self.span) + self.span.stop - start)


@dataclass(frozen=True, slots=True)
class Leg:
    """One stage's part of a route."""

    peer: PeerId
    span: Span


def choose(
    stages: Sequence[StageLoad], num_blocks: int, rng: random.Random, held_by: Collection[PeerId] = ()
) -> tuple[Leg, ...] | None:
    """Stages that cover blocks [0, num_blocks) in order; None if these stages do not.

    held_by: peers that hold this micro-batch already; they are taken if they lead to the end.
    """
    useful = _leading_to_end(stages, num_blocks)
    legs: list[Leg] = []
    block = 0
    while block < num_blocks:
        ready = [stage for stage in useful if stage.span.start <= block < stage.span.stop]
        if not ready:
            return None
        stage = _better_of_two([stage for stage in ready if stage.peer in held_by] or ready, block, rng)
        legs.append(Leg(stage.peer, Span(block, stage.span.stop)))
        block = stage.span.stop
    return tuple(legs)


def _better_of_two(stages: Sequence[StageLoad], block: int, rng: random.Random) -> StageLoad:
    """A stage whose work is a longer part of the model is not slower for it: what counts is the time for one block."""
    drawn = rng.sample(stages, min(2, len(stages)))
    return min(drawn, key=lambda stage: stage.finish_ms(block) / (stage.span.stop - block))


def _leading_to_end(stages: Sequence[StageLoad], num_blocks: int) -> list[StageLoad]:
    """The stages from whose last block the end of the model can be reached."""
    reached, useful = {num_blocks}, list[StageLoad]()
    for stage in sorted(stages, key=lambda stage: -stage.span.stop):
        if stage.span.stop in reached:
            useful.append(stage)
            reached.update(range(stage.span.start, stage.span.stop))
    return useful


def uncovered(stages: Sequence[StageLoad], num_blocks: int) -> list[int]:
    """The blocks that no stage hosts."""
    hosted = {block for stage in stages for block in range(stage.span.start, stage.span.stop)}
    return [block for block in range(num_blocks) if block not in hosted]
