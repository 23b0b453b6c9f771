"""Gradients through remote blocks: one autograd function over all of them.

The blocks stay frozen: what comes back is the gradient of the hidden states that went in. From there autograd goes on by itself, to the
client's own embedding, to `inputs_embeds` and soft prompts; those of the final norm and the head never leave this machine.

Sequences of real tokens travel side by side, filled up on the right: a causal model cannot look there, so that is exact.

Shapes: B batch rows, q columns, T real tokens of all, R sequences, L tokens of the longest, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from protocols.errors import BadRequestError
from swarm.client.backend import OpenPass

MakePass = Callable[[Tensor], tuple[Tensor, OpenPass]]
"""Runs the forward of hidden states [R, L, H]; errors as of `Backend.differentiate`."""


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, make_pass: MakePass) -> Tensor:
        output, ctx.open_pass = make_pass(hidden.detach())
        return output.to(hidden.device, hidden.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise BadRequestError("second derivatives do not pass a swarm: call backward without create_graph=True")
        found: Tensor = ctx.open_pass.backward(gradient)
        return found.to(gradient.device, gradient.dtype), None


def through_blocks(hidden_BqH: Tensor, real_Bq: Tensor | None, sequences: Sequence[int] | None, make_pass: MakePass) -> Tensor:
    """[B, q, H] after the blocks, differentiable; zeros at padding.

    real_Bq: which columns are real tokens; None = all. sequences: tokens of each sequence that is packed in the batch rows; None = each
    batch row is one sequence.
    """
    if real_Bq is None and sequences is None:
        return _run(hidden_BqH, make_pass)
    flat_BqH = hidden_BqH.flatten(0, 1)
    real = torch.ones(hidden_BqH.shape[:2], dtype=torch.bool) if real_Bq is None else real_Bq
    where_T = real.flatten().nonzero().flatten().to(flat_BqH.device)
    places_RL, is_token_RL = _rows(sequences or real.sum(1).tolist(), flat_BqH.device)
    output_BqH = torch.zeros_like(flat_BqH)
    if len(where_T):
        output_RLH = _run(flat_BqH[where_T][places_RL], make_pass)
        output_BqH = output_BqH.index_put((where_T,), output_RLH[is_token_RL])
    return output_BqH.view_as(hidden_BqH)


def _rows(counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each sequence's tokens are on the flat axis, [R, L], its last one again where it has ended; and where it has not, [R, L]."""
    lengths = torch.tensor([count for count in counts if count], device=device)[:, None]
    offsets = torch.arange(int(lengths.max()) if len(lengths) else 0, device=device)[None]
    starts = lengths.cumsum(0) - lengths
    return starts + offsets.minimum(lengths - 1), offsets < lengths


def _run(hidden: Tensor, make_pass: MakePass) -> Tensor:
    return cast("Tensor", _Blocks.apply(hidden, make_pass))  # type: ignore[no-untyped-call]
