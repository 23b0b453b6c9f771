"""A backend of perfect hops, whose logits are transformers' own.

They come from a sequence's tokens alone, one sequence at a time and without a cache. So only what the thin client adds (sequences,
padding, operations, `generate`) can go wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from protocols.ids import ModelId, Span
from protocols.inference import WANT_ALL, Crop, Op, Repeat, Rows, StepSpec
from swarm.client.backend import EMBEDS, IDS, StepRequest
from tests.swarm.client.local_backend import Call


@dataclass
class IdealBackend:
    """Hops that host `reference`, ends included."""

    reference: Any
    dtype: torch.dtype = torch.float32
    version: int | None = None
    calls: list[Call] = field(default_factory=list)
    forms: set[StepSpec] = field(default_factory=set)
    num_opened: int = 0
    num_closed: int = 0

    @property
    def model(self) -> ModelId:
        return ModelId("ideal", "0" * 64)

    def open(self, blocks: Span | None = None) -> IdealSession:
        self.num_opened += 1
        return IdealSession(self)

    def close(self) -> None:
        pass


Row = list[tuple[Tensor, int]]
"""A sequence's tokens as embeddings [E] or ids [], with their positions."""


class IdealSession:
    version = None

    def __init__(self, backend: IdealBackend) -> None:
        self._backend = backend
        self._rows: list[Row] | None = None
        self._is_closed = False

    def step(self, request: StepRequest) -> Tensor:
        backend, counts, positions = self._backend, request.counts, request.positions
        ops, tokens, want, form = request.ops, request.tokens, request.spec.want, request.spec.wanting(WANT_ALL)
        assert form in (IDS, EMBEDS) and not self._is_closed and tokens.shape[:2] == (1, sum(counts))
        backend.calls.append(Call(ops, counts, want, None if positions is None else positions.tolist()))
        backend.forms.add(form)
        rows = self._rows = _changed(self._rows or [[] for _ in counts], ops)
        assert len(rows) == len(counts)
        outputs, at = [], 0
        for row, count in zip(rows, counts, strict=True):
            for number in range(count):
                place = len(row) if positions is None else int(positions[at + number])
                row.append((tokens[0, at + number], place))
            at += count
            outputs.append(
                self._logits(row)[len(row) - (count if want == WANT_ALL else min(want, count)) :] if count else torch.empty(0)
            )
        return torch.cat([output for output in outputs if len(output)])[None]

    def _logits(self, row: Row) -> Tensor:
        model, options = self._backend.reference, {}
        if any(place != number for number, (_, place) in enumerate(row)):
            options["position_ids"] = torch.tensor([[place for _, place in row]])
        with torch.no_grad():
            if all(token.dim() == 0 for token, _ in row):
                options["input_ids"] = torch.stack([token for token, _ in row]).long()[None]
            else:
                embed = model.get_input_embeddings()
                options["inputs_embeds"] = torch.stack([token if token.dim() else embed(token.long()) for token, _ in row])[None]
            logits: Tensor = model(**options, use_cache=False).logits[0].float()
        return logits

    async def step_async(self, request: StepRequest) -> Tensor:
        return await asyncio.to_thread(self.step, request)

    def fork(self) -> IdealSession:
        twin = self._backend.open()
        twin._rows = None if self._rows is None else [list(row) for row in self._rows]
        return twin

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._backend.num_closed += 1


def _changed(rows: list[Row], ops: Sequence[Op]) -> list[Row]:
    for op in ops:
        match op:
            case Rows(indices):
                rows = [list(rows[index]) for index in indices]
            case Repeat(times):
                rows = [list(row) for row in rows for _ in range(times)]
            case Crop(tokens):
                rows = [row[: len(row) - tokens] for row in rows]
    return rows
