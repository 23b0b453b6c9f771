"""Around the blocks in a forward: embedding before them, head after.

Most steps bring and ask for hidden states. Where this node hosts the ends, those that bring token ids or embeddings are embedded
together in front of the blocks, and the head runs once over the wanted tokens of all that ask for logits.

Shapes: T tokens of all chunks, T' of them wanted, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from node.device.pending import Chunk
from node.engines import ends as own_ends
from swarm.inference import chunks
from swarm.inference.compute import Output

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine, TokenSequence


def begin(engine: Engine, ends: Ends | None, batch: Sequence[tuple[Chunk, Sequence[TokenSequence]]]) -> Tensor:
    """The batch's hidden states [T, H] on the engine's device, chunk after chunk."""
    parts: dict[int, Tensor] = {}
    for kind in ("ids", "embeds"):
        members = [(index, chunk, rows) for index, (chunk, rows) in enumerate(batch) if chunk.step.spec.kind == kind]
        if members:
            assert ends is not None, "a hop takes token ids only where the ends are"
            pieces = _embedded(ends, kind, [(chunk, rows) for _, chunk, rows in members])
            parts |= {index: piece for (index, _, _), piece in zip(members, pieces, strict=True)}
    hidden = [parts[index] if index in parts else chunk.values().to(engine.device) for index, (chunk, _) in enumerate(batch)]
    return hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def _embedded(ends: Ends, kind: str, batch: Sequence[tuple[Chunk, Sequence[TokenSequence]]]) -> Sequence[Tensor]:
    """All chunks of one kind at once; each token's place is its row's length and on, or what its caller says."""
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
    """The positions of a chunk's tokens: its caller's, else counted on from its rows' lengths."""
    if chunk.step.positions is not None:
        return chunk.step.positions[chunk.at : chunk.at + chunk.size]
    return torch.cat([torch.arange(row.length, row.length + count) for row, count in zip(rows, chunk.counts(), strict=True)])


def finish(ends: Ends | None, batch: Sequence[Chunk], output: Tensor) -> list[Output]:
    """What each chunk's step asks for, on the CPU, of the blocks' output [T, H]."""
    pieces = [_wanted(chunk, piece) for chunk, piece in zip(batch, output.split([chunk.size for chunk in batch]), strict=True)]
    asking = [index for index, chunk in enumerate(batch) if chunk.step.spec.result != "hidden"]
    if not asking:
        # a hop retains its piece for as long as its session lives: as a view, it would keep everybody's output alive
        return [Output(values=piece.cpu().clone() if len(batch) > 1 else piece.cpu()) for piece in pieces]
    assert ends is not None, "a hop takes wishes for logits only where the ends are"
    logits = ends.logits(torch.cat([pieces[index] for index in asking])).split([len(pieces[index]) for index in asking])
    answers = {index: _answer(batch[index], piece, len(asking) > 1) for index, piece in zip(asking, logits, strict=True)}
    return [answers.get(index) or Output(values=piece.cpu().clone()) for index, piece in enumerate(pieces)]


def _wanted(chunk: Chunk, output: Tensor) -> Tensor:
    """Those tokens of a chunk's output that its step wants back: before the head, since that is the dearest step of all."""
    ranges = chunks.wanted(chunk.step.spec.want, chunk.step.counts)
    if ranges is None:
        return output
    inside = [(max(start - chunk.at, 0), min(stop - chunk.at, chunk.size)) for start, stop in ranges]
    parts = [output[start:stop] for start, stop in inside if start < stop]
    return torch.cat(parts) if parts else output[:0]


def joined(outputs: Sequence[Output]) -> Output:
    """What came of a step's chunks, as one."""
    if len(outputs) == 1:
        return outputs[0]
    ids = [output.ids for output in outputs if output.ids is not None]
    return Output(values=torch.cat([output.values for output in outputs]), ids=torch.cat(ids) if ids else None)


def _answer(chunk: Chunk, logits: Tensor, is_shared: bool) -> Output:
    if chunk.step.spec.result == "top":
        values, ids = own_ends.top(logits, chunk.step.spec.top)
        return Output(values=values, ids=ids)
    return Output(values=logits.clone() if is_shared else logits)
