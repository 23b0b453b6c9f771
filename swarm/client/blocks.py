"""Stands in for a model's layer list.

One module whose forward is one step through every block, wherever the blocks are.

The model's own forward still embeds, normalises and projects; this module takes the hidden states off it, drops the
padding, carries sequences of real tokens, and puts what comes back where those tokens were. What it must know beyond the
hidden states (cache, mask, positions, how much is wanted) travels beside the model's forward in a ContextVar, because
each family hands other things to its blocks.

Shapes: B sequences, q new columns, T real tokens of all sequences, T' of them wanted back, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protocols.errors import BadRequestError, InternalError
from protocols.ids import Span
from protocols.inference import PASS_ON, WANT_ALL, StepSpec
from swarm.client import checks, gradients, stepping
from swarm.client.backend import Backend, OpenPass, StepRequest, StepSession
from swarm.client.cache import RemoteCache
from swarm.client.refusals import INNER
from swarm.models.stand_in import StandIn


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """What one forward of the model wants from its blocks."""

    cache: RemoteCache | None
    """Where the sequences go on; None = a session for this step alone."""
    real_Bq: Tensor | None = None
    """Which new columns are real tokens; None = all."""
    positions_T: Tensor | None = None
    want: int = WANT_ALL
    sequences: tuple[int, ...] | None = None
    """Tokens of each sequence that is packed in the batch rows, all real and wanted; None = each batch row is one sequence."""


_plan: ContextVar[StepPlan | None] = ContextVar("murmuration_step_plan", default=None)


@contextmanager
def planned(plan: StepPlan) -> Iterator[None]:
    """Forwards inside this context, in this thread or task, carry their step by `plan`."""
    token = _plan.set(plan)
    try:
        yield
    finally:
        _plan.reset(token)


class RemoteBlocks(StandIn):
    """All blocks of the model as one. `template` is a block without weights, asked for attributes that a forward may read."""

    def __init__(self, backend: Backend, returns_tuple: bool, template: nn.Module | None) -> None:
        super().__init__(template)
        self.backend = backend
        self.returns_tuple = returns_tuple

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        plan = _plan.get()
        if plan is None:
            raise BadRequestError(f"{INNER}, with output_hidden_states=True for the last hidden state")
        output = carry(plan, hidden_states, self.backend)
        return (output, None) if self.returns_tuple else output


def carry(
    plan: StepPlan,
    tokens_BqX: Tensor,
    backend: Backend,
    spec: StepSpec = PASS_ON,
    width: int = 0,
    blocks: Span | None = None,
) -> Tensor:
    """One step: [B, q, …] in, as `spec` says; [B, q, width] out (the width of the input where that is 0), zeros where nothing was
    wanted or a column is padding. blocks: None = all.

    If autograd records and the tokens require a gradient, it is a differentiable pass instead, of which all columns come back.
    BadRequestError says why that is not possible.
    """
    if torch.is_grad_enabled() and tokens_BqX.requires_grad:
        checks.check_differentiable(
            spec, backend.dtype, has_cache=plan.cache is not None, has_positions=plan.positions_T is not None
        )

        def make_pass(hidden: Tensor) -> tuple[Tensor, OpenPass]:
            return backend.differentiate(hidden, blocks)

        return gradients.through_blocks(tokens_BqX, plan.real_Bq, plan.sequences, make_pass)
    output = _carried(plan, tokens_BqX.detach(), lambda: backend.open(blocks), spec, width)
    # autograd refuses to record a tensor that was made in inference mode, as an input of the head
    return output.clone() if torch.is_grad_enabled() and output.is_inference() else output


def _carried(plan: StepPlan, tokens_BqX: Tensor, open_session: Callable[[], StepSession], spec: StepSpec, width: int) -> Tensor:
    size, columns = tokens_BqX.shape[:2]
    width = width or tokens_BqX.shape[-1]
    dtype = torch.float32 if spec.result == "logits" else tokens_BqX.dtype
    real = plan.real_Bq
    counts = plan.sequences or ([columns] * size if real is None else real.sum(1).tolist())
    flat_TX = tokens_BqX.flatten(0, 1) if real is None else tokens_BqX[real]
    if not len(flat_TX):
        reply = torch.empty((1, 0, width), dtype=dtype)
        if plan.cache is not None:
            plan.cache.skip(size, columns)
    else:
        request = StepRequest(
            counts=tuple(counts), tokens=flat_TX[None], positions=plan.positions_T, spec=spec.wanting(plan.want)
        )
        reply = _step_alone(open_session(), request) if plan.cache is None else plan.cache.step(request, columns)
    where = wanted(real, size, columns, plan.want, tokens_BqX.device)
    expected = (1, size * columns if where is None else int(where.sum()), width)
    if tuple(reply.shape) != expected:
        raise InternalError(f"the last hop returned {spec.result} of shape {list(reply.shape)}, expected {list(expected)}")
    if reply.dtype is not dtype or reply.device != tokens_BqX.device:
        reply = reply.to(device=tokens_BqX.device, dtype=dtype)
    if where is None:
        return reply if size == 1 else reply.view(size, columns, width)
    output = torch.zeros((size, columns, width), dtype=dtype, device=tokens_BqX.device)
    output[where] = reply[0]
    return output


def _step_alone(session: StepSession, request: StepRequest) -> Tensor:
    try:
        return stepping.step(session, request)
    finally:
        session.close()


def wanted(real_Bq: Tensor | None, size: int, columns: int, want: int, device: torch.device) -> Tensor | None:
    """[B, q] bool: the columns whose output comes back, in the order of the reply; None = every column."""
    if real_Bq is None:
        if want == WANT_ALL or want >= columns:
            return None
        last = torch.arange(columns, device=device) >= columns - want
        return last.expand(size, columns)
    if want == WANT_ALL:
        return real_Bq
    after = real_Bq.flip(1).cumsum(1).flip(1)  # real tokens from here to the sequence's end
    return real_Bq & (after <= want)
