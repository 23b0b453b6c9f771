"""The head's loss in groups of tokens is that of one run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.engines.ends import LOGITS_BYTES, TABLE_TOKENS
from node.training.loss import head_loss

HIDDEN, VOCABULARY = 8, 1 << 18


@pytest.mark.parametrize("count", [1, 65])
def test_groups_give_the_loss_and_gradients_of_one_run(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator).requires_grad_()
    unused = torch.zeros(3).requires_grad_()
    hidden = torch.randn(count, HIDDEN, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (count,), generator=generator)
    largest = 0

    def head(given: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, given.shape[0] * given.shape[1])
        assert given.shape[1] <= TABLE_TOKENS
        return given @ weight.T

    got = head_loss(head, hidden.detach(), targets, torch.arange(count), [weight, unused], VOCABULARY)
    assert largest * 4 * VOCABULARY <= LOGITS_BYTES, "at most this much of the logits at a time"
    loss = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    of_hidden, of_weight = torch.autograd.grad(loss, [hidden, weight])
    assert got.loss_sum == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(got.hidden, of_hidden)
    torch.testing.assert_close(got.parameters[0], of_weight)
    assert got.parameters[1] is None and weight.grad is None


def test_without_targets_there_is_no_loss_and_no_gradient() -> None:
    weight = torch.randn(16, HIDDEN).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.long)
    got = head_loss(lambda hidden: hidden @ weight.T, torch.zeros(0, HIDDEN), nothing, nothing, [weight], 16)
    assert (got.loss_sum, got.parameters, got.hidden.shape) == (0.0, (None,), (0, HIDDEN))  # type: ignore[union-attr]
