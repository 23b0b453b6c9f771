"""What a step does on the device: enter, forward, rewind.

All functions run in the device's thread. A batch that fails is run again, each step alone (`forwards.py`), from the lengths that its
sequences had before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from node.device.pending import Chunk
from node.device.work import Step
from node.serving import batch as edges
from protocols.defaults import MAX_STEP_TOKENS
from protocols.errors import BadRequestError, InternalError, SwarmError
from protocols.words import counted
from swarm.inference.hop.compute import Output
from swarm.models.default_dtype import computing

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine, TokenSequence

Batch: TypeAlias = list[tuple[Chunk, "list[TokenSequence]"]]


def forward(engine: Engine, ends: Ends | None, batch: Batch) -> list[Output]:
    """One forward of the engine's blocks. Returns what the step of each `Chunk` asks for; the sequences have grown by its tokens."""
    items = [(row, count) for chunk, rows in batch for row, count in zip(rows, chunk.counts(), strict=True) if count]
    with computing():  # the node may be loading another span in another thread
        hidden = edges.begin(engine, ends, batch)
        output = engine.step(items, hidden[None], _positions(batch, engine.device))[0]
        return edges.finish(ends, [chunk for chunk, _ in batch], output)


def rewind(engine: Engine, rows: Sequence[TokenSequence], lengths: Sequence[int]) -> None:
    """Take back what a failed forward had appended. InternalError if the engine cannot: the session continues at another peer."""
    for row, length in zip(rows, lengths, strict=True):
        if row.length != length:
            try:
                engine.crop(row, row.length - length)
            except SwarmError as error:
                raise InternalError(f"a batch failed here, and this step cannot be run again: {error}") from error


def check_size(step: Step, num_tokens: int, rows: Sequence[TokenSequence], max_positions: int | None) -> None:
    """BadRequestError if a step would harm other sessions: too many tokens, or positions for which the model has no table.

    A rotary table that is extended for one sequence is extended for the whole batch, and an index beyond a table ends a GPU's context.
    """
    if num_tokens > MAX_STEP_TOKENS:
        raise BadRequestError(f"a step has at most {MAX_STEP_TOKENS} tokens here, got {num_tokens}: send several steps")
    longest = max([row.length + count for row, count in zip(rows, step.counts, strict=True)], default=0)
    if step.positions is not None and len(step.positions):
        longest = max(longest, int(step.positions.max()) + 1)
    if max_positions is not None and longest > max_positions:
        raise BadRequestError(
            f"this model has positions for {counted(max_positions, 'token')} of a sequence, the step needs {longest}: shorten it"
        )


def close_all(engine: Engine, rows: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Close these sequences. Returns the empty list."""
    for row in rows:
        engine.close(row)
    return []


def forks(engine: Engine, rows: Sequence[TokenSequence]) -> list[TokenSequence]:
    """Copies of all these sequences; if one fails, those made before are closed and the error is raised."""
    made: list[TokenSequence] = []
    try:
        for row in rows:
            made.append(engine.fork(row))
    except BaseException:
        close_all(engine, made)
        raise
    return made


def _positions(batch: Batch, device: torch.device) -> Tensor | None:
    """Positions of all tokens if any step brings its own; the others count on from the lengths of their sequences."""
    if all(chunk.step.positions is None for chunk, _ in batch):
        return None
    return torch.cat([edges.places(chunk, rows) for chunk, rows in batch]).to(device)
