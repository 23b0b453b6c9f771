"""What stands around the blocks in a forward: the tokens of every job's piece become hidden states, and of those, what it asks for.

Most jobs bring and ask for hidden states. Where this node hosts the ends, those that bring token ids or embeddings are embedded
together in front of the blocks, and the head runs once over the wanted tokens of all that ask for logits.

Shapes: T tokens of all jobs, T' of them wanted, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.serving import ends as own_ends
from node.serving.scheduler import Job
from swarm.inference import chunks
from swarm.inference.compute import Output

if TYPE_CHECKING:
    from node.serving.ends import Ends
    from node.serving.engine import Engine, Row


def begin(engine: Engine, ends: Ends | None, batch: Sequence[tuple[Job, Sequence[Row]]]) -> Tensor:
    """The batch's hidden states [T, H] on the engine's device, job after job."""
    parts: dict[int, Tensor] = {}
    for kind in ("ids", "embeds"):
        members = [(index, job, rows) for index, (job, rows) in enumerate(batch) if job.spec.kind == kind]
        if members:
            assert ends is not None, "a hop takes token ids only where the ends are"
            pieces = _embedded(ends, kind, [(job, rows) for _, job, rows in members])
            parts |= {index: piece for (index, _, _), piece in zip(members, pieces, strict=True)}
    hidden = [parts[index] if index in parts else _values(job).to(engine.device) for index, (job, _) in enumerate(batch)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def _values(job: Job) -> Tensor:
    assert job.values is not None
    return job.values[job.at : job.at + job.size]


def _embedded(ends: Ends, kind: str, batch: Sequence[tuple[Job, Sequence[Row]]]) -> Sequence[Tensor]:
    """All jobs of one kind at once; each token's place is its row's length and on, or what its caller says."""
    stretches = [
        own_ends.Stretch(row.length, count)
        for job, rows in batch
        for row, count in zip(rows, job.piece_counts(), strict=True)
        if count
    ]
    explicit = any(job.positions is not None for job, _ in batch)
    positions = torch.cat([places(job, rows) for job, rows in batch]) if explicit else None
    hidden = ends.embed(kind, torch.cat([_values(job) for job, _ in batch]), stretches, positions)
    pieces: Sequence[Tensor] = hidden.split([job.size for job, _ in batch])
    return pieces


def places(job: Job, rows: Sequence[Row]) -> Tensor:
    """The positions of a piece's tokens: its caller's, else counted on from its rows' lengths."""
    if job.positions is not None:
        return job.positions[job.at : job.at + job.size]
    return torch.cat([torch.arange(row.length, row.length + count) for row, count in zip(rows, job.piece_counts(), strict=True)])


def finish(ends: Ends | None, jobs: Sequence[Job], output: Tensor) -> list[Output]:
    """What each job asks for, on the CPU, of the blocks' output [T, H]."""
    pieces = [_wanted(job, piece) for job, piece in zip(jobs, output.split([job.size for job in jobs]), strict=True)]
    asking = [index for index, job in enumerate(jobs) if job.spec.result != "hidden"]
    if not asking:
        # a hop retains its piece for as long as its session lives: as a view, it would keep everybody's output alive
        return [Output(values=piece.cpu().clone() if len(jobs) > 1 else piece.cpu()) for piece in pieces]
    assert ends is not None, "a hop takes wishes for logits only where the ends are"
    logits = ends.logits(torch.cat([pieces[index] for index in asking])).split([len(pieces[index]) for index in asking])
    answers = {index: _answer(jobs[index], piece, len(asking) > 1) for index, piece in zip(asking, logits, strict=True)}
    return [answers.get(index) or Output(values=piece.cpu().clone()) for index, piece in enumerate(pieces)]


def _wanted(job: Job, output: Tensor) -> Tensor:
    """Those tokens of a piece that its job wants back: before the head, since that is the dearest step of all."""
    ranges = chunks.wanted(job.spec.want, job.counts)
    if ranges is None:
        return output
    inside = [(max(start - job.at, 0), min(stop - job.at, job.size)) for start, stop in ranges]
    parts = [output[start:stop] for start, stop in inside if start < stop]
    return torch.cat(parts) if parts else output[:0]


def joined(outputs: Sequence[Output]) -> Output:
    """What came of a job's pieces, as one."""
    if len(outputs) == 1:
        return outputs[0]
    ids = [output.ids for output in outputs if output.ids is not None]
    return Output(values=torch.cat([output.values for output in outputs]), ids=torch.cat(ids) if ids else None)


def _answer(job: Job, logits: Tensor, is_shared: bool) -> Output:
    if job.spec.result == "top":
        values, ids = own_ends.top(logits, job.spec.top)
        return Output(values=values, ids=ids)
    return Output(values=logits.clone() if is_shared else logits)
