"""Where backpropagation ends: a gradient that reaches remote blocks is refused.

Nodes serve inference and return no gradients. Without this, `loss.backward()` would fail with a message about `grad_fn`, or give
embedding and head gradients from which the part that goes through the blocks is missing.
"""

from __future__ import annotations

from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from protocols.errors import BadRequestError

NO_BACKWARD = (
    "backward() stops at the blocks: the swarm serves inference, and its nodes return no gradients; compute the loss under "
    "torch.no_grad(), or train the model on one machine with transformers' AutoModelForCausalLM"
)


class _Border(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)  # in place: the logits of a long prompt are not copied
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise BadRequestError(NO_BACKWARD)


def without_gradients(output: Tensor) -> Tensor:
    """The same values; if autograd records, as something through which no gradient passes."""
    if not torch.is_grad_enabled():
        return output
    if output.is_inference():
        output = output.clone()  # autograd refuses to record a tensor that was made in inference mode
    return cast("Tensor", _Border.apply(output, torch.empty(0, requires_grad=True)))  # type: ignore[no-untyped-call]
