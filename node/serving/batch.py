"""Around the blocks in a forward: embedding before them, head after.

Most steps bring and ask for hidden states. If this node hosts embedding and head, steps that bring token ids or embeddings are embedded
together in front of the blocks, and the head runs once over the wanted tokens of all steps that ask for logits.

Shapes: T tokens of all `Chunk`s of a batch, T' of them wanted, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.device.pending import Chunk
from node.engines import ends as own_ends
from protocols.logit_changes import LogitChanges
from protocols.step_spec import StepSpec
from swarm.inference import chunks
from swarm.inference.hop.compute import Output

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine, TokenSequence


def begin(engine: Engine, ends: Ends | None, batch: Sequence[tuple[Chunk, Sequence[TokenSequence]]]) -> Tensor:
    """The batch's hidden states [T, H] on the engine's device, one `Chunk` after the other."""
    parts: dict[int, Tensor] = {}
    for kind in ("ids", "embeds"):
        members = [(index, chunk, rows) for index, (chunk, rows) in enumerate(batch) if chunk.step.spec.kind == kind]
        if members:
            assert ends is not None, "a hop takes token ids only if it hosts embedding and head"
            pieces = _embedded(ends, kind, [(chunk, rows) for _, chunk, rows in members])
            parts |= {index: piece for (index, _, _), piece in zip(members, pieces, strict=True)}
    hidden = [parts[index] if index in parts else chunk.values().to(engine.device) for index, (chunk, _) in enumerate(batch)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def _embedded(ends: Ends, kind: str, batch: Sequence[tuple[Chunk, Sequence[TokenSequence]]]) -> Sequence[Tensor]:
    """Hidden states of each `Chunk`, all of one kind (ids, embeddings). Positions: its step's own, else from each sequence's length on."""
    stretches = [
        own_ends.Stretch(row.length, count)
        for chunk, rows in batch
        for row, count in zip(rows, chunk.counts(), strict=True)
        if count
    ]
    explicit = any(chunk.step.positions is not None for chunk, _ in batch)
    positions = torch.cat([places(chunk, rows) for chunk, rows in batch]) if explicit else None
    hidden = ends.embed(kind, torch.cat([chunk.values() for chunk, _ in batch]), stretches, positions)
    pieces: Sequence[Tensor] = hidden.split([chunk.size for chunk, _ in batch])
    return pieces


def places(chunk: Chunk, rows: Sequence[TokenSequence]) -> Tensor:
    """Positions of the tokens of a `Chunk`: its step's own, else from each sequence's length on."""
    if chunk.step.positions is not None:
        return chunk.step.positions[chunk.at : chunk.at + chunk.size]
    return torch.cat([torch.arange(row.length, row.length + count) for row, count in zip(rows, chunk.counts(), strict=True)])


def finish(ends: Ends | None, batch: Sequence[Chunk], output: Tensor) -> list[Output]:
    """What the step of each `Chunk` asks for, on the CPU, of the blocks' output [T, H]."""
    pieces = [_wanted(chunk, piece) for chunk, piece in zip(batch, output.split([chunk.size for chunk in batch]), strict=True)]
    asking = [index for index, chunk in enumerate(batch) if chunk.step.spec.result != "hidden"]
    if not asking:
        # a hop retains its output while its session lives: a view would keep the outputs of the whole batch in memory
        return [Output(values=piece.cpu().clone() if len(batch) > 1 else piece.cpu()) for piece in pieces]
    assert ends is not None, "a hop takes steps that ask for logits only if it hosts embedding and head"
    answers: dict[int, Output] = {}
    for is_pooled, run in ((False, ends.logits), (True, ends.final)):
        members = [index for index in asking if (batch[index].step.spec.result == "pooled") is is_pooled]
        if members:
            found = run(torch.cat([pieces[index] for index in members])).split([len(pieces[index]) for index in members])
            is_shared = len(members) > 1
            answers |= {index: _answer(batch[index], piece, is_shared) for index, piece in zip(members, found, strict=True)}
    return [answers.get(index) or Output(values=piece.cpu().clone()) for index, piece in enumerate(pieces)]


def _wanted(chunk: Chunk, output: Tensor) -> Tensor:
    """The tokens of a `Chunk`'s output that its step wants back; chosen before the head, which costs more than any block."""
    ranges = chunks.wanted(chunk.step.spec.want, chunk.step.counts)
    if ranges is None:
        return output
    inside = [(max(start - chunk.at, 0), min(stop - chunk.at, chunk.size)) for start, stop in ranges]
    parts = [output[start:stop] for start, stop in inside if start < stop]
    return torch.cat(parts) if parts else output[:0]


def joined(outputs: Sequence[Output]) -> Output:
    """The outputs of a step's prefill chunks, joined."""
    if len(outputs) == 1:
        return outputs[0]
    ids = [output.ids for output in outputs if output.ids is not None]
    totals = [output.totals for output in outputs if output.totals is not None]
    return Output(
        values=torch.cat([output.values for output in outputs]),
        ids=torch.cat(ids) if ids else None,
        totals=torch.cat(totals) if totals else None,
    )


def _answer(chunk: Chunk, found: Tensor, is_shared: bool) -> Output:
    """found: logits [T', V], or final hidden states [T', H] of a step that wants their sum. is_shared: other steps have a part of it."""
    if chunk.step.spec.result == "pooled":
        return Output(values=found.double().sum(0, keepdim=True).float() if len(found) else found)
    return _of_logits(chunk.step.spec, found, is_shared)


def _of_logits(spec: StepSpec, logits: Tensor, is_shared: bool) -> Output:
    if not spec.is_top:
        return Output(values=logits.clone() if is_shared else logits)
    made = own_ends.changed(logits, LogitChanges.parse(spec.changes, logits.shape[-1])) if spec.changes else logits
    made = own_ends.allowed(made, spec.mask) if spec.mask else made
    values, ids = own_ends.top(made, spec.top)
    totals = own_ends.totals(made, spec.temperature) if spec.temperature else None
    if spec.result == "scored":
        return _scored(spec, logits, values, ids, totals)
    return Output(values=values, ids=ids, totals=totals)


def _scored(spec: StepSpec, logits: Tensor, values: Tensor, ids: Tensor, totals: Tensor | None) -> Output:
    """With what scores need of the model's own logits [T', V]. values, ids, totals: of those that decide."""
    own, sums = logits.gather(-1, ids.long()), own_ends.totals(logits, 1.0)
    largest, named = own_ends.top(logits, spec.own)
    return Output(
        values=torch.cat([values, own, largest], dim=-1),
        ids=torch.cat([ids, ids, named], dim=-1),
        totals=torch.stack([sums if totals is None else totals, sums], dim=-1),
    )
