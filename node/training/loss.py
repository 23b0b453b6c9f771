"""Cross entropy of a head and its gradients, some tokens at once.

The logits of all tokens never exist at once: of each group of tokens, the logits, their loss and its gradients are computed and dropped
before the next. So the head runs once forward and once backward, as it would in one run; nothing of it is computed again. Tokens without
a target do not pass the head.

Shapes: N target tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.engines.ends import LOGITS_BYTES, TABLE_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLoss:
    """Sums over N target tokens."""

    loss_sum: float
    """Nats, added up in float64."""
    tokens: Tensor
    """Where the target tokens are on one axis of all tokens: [N]."""
    hidden: Tensor | None
    """Gradient of what entered the head: [N, H], in its dtype. None: no gradients were asked for, or they are gone."""
    parameters: tuple[Tensor | None, ...]
    """Gradients of the parameters that were asked for, each in its dtype; None: the head does not use it, or there is no target."""

    def without_gradients(self) -> HeadLoss:
        return replace(self, hidden=None, parameters=())


def head_loss(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    tokens: Tensor,
    parameters: Sequence[Tensor] | None,
    vocab_size: int,
) -> HeadLoss:
    """Sum of cross entropy over N tokens, and its gradients.

    head: hidden states [k, t, H] -> logits [k, t, V]; hidden [N, H]; targets [N], each in [0, V); tokens [N]: kept in the result;
    parameters: leaves that the head may use; None: no gradients, of `hidden` neither.
    At a time, logits take LOGITS_BYTES (or those of 64 tokens, if these are more) in float32, and up to three times that beside them.
    """
    found: list[Tensor | None] = [None] * len(parameters or ())
    gradients, loss_sum = [], torch.zeros((), dtype=torch.float64, device=hidden.device)
    for part, wanted in _groups(hidden, targets, vocab_size):
        leaf = part.detach().clone().requires_grad_()
        with torch.set_grad_enabled(parameters is not None):
            loss = _loss(head, leaf, wanted)
        loss_sum += loss.detach().double()
        if parameters is not None:
            of_hidden, *of_parameters = torch.autograd.grad(loss, [leaf, *parameters], allow_unused=True)
            gradients.append(of_hidden)
            found = [_sum(old, new) for old, new in zip(found, of_parameters, strict=True)]
    of_all = None if parameters is None else torch.cat(gradients) if gradients else torch.zeros_like(hidden)
    return HeadLoss(loss_sum=float(loss_sum), tokens=tokens, hidden=of_all, parameters=tuple(found))


def _groups(hidden: Tensor, targets: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(TABLE_TOKENS, LOGITS_BYTES // (4 * vocab_size) // TABLE_TOKENS * TABLE_TOKENS)
    if len(targets):
        yield from zip(hidden.split(size), targets.split(size), strict=True)


def _loss(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Tokens are laid out as sequences of at most TABLE_TOKENS, for models that count positions by themselves in a short table."""
    count = len(targets)
    if count > TABLE_TOKENS:
        hidden = torch.cat([hidden, hidden[:1].expand(-count % TABLE_TOKENS, -1)]).view(-1, TABLE_TOKENS, hidden.shape[-1])
    else:
        hidden = hidden[None]
    logits = head(hidden).flatten(0, 1)[:count].float()
    return cross_entropy(logits, targets, reduction="sum")


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old.add_(new)
