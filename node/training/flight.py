"""One micro-batch on a stage, between its forward and its backward.

Shapes: B sequences of T tokens, H hidden size, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from node.training.loss import HeadLoss
from protocols.ids import Span
from protocols.parts_of_units import Part

Kind = Literal["ids", "embeds", "hidden"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a forward was given, in memory of its own."""

    span: Span
    kind: Kind
    values: Tensor
    """ids [B, T], embeds [B, T, E] or hidden [B, T, H]; of the latter two, gradients can be taken."""
    positions: Tensor | None
    """[B, T], restarting at documents; None: each sequence is one document."""


@dataclass(slots=True, kw_only=True, eq=False, weakref_slot=True)
class Flight:
    """What `Stage.backward` needs of a forward. It is used once; `close` frees its memory without a backward."""

    inputs: Inputs
    output: Tensor | None
    """[B, T, H], for the next hop, without a graph. None if the loss was computed here."""
    head: HeadLoss | None = field(repr=False)
    """The loss and its gradients, if it was computed here."""
    graph: Tensor | None = field(repr=False)
    """What left the last block of the span, with its graph; None: it is computed again."""
    graph_bytes: int
    """What the graph keeps alive, besides parameters; 0 without one."""
    weights_stamp: int
    """`Stage` compares it at the backward: the parameters must be those of the forward."""
    is_open: bool = True

    @property
    def loss_sum(self) -> float:
        """Sum of cross entropy over the target tokens, in nats; 0 if another hop computes the loss."""
        return 0.0 if self.head is None else self.head.loss_sum

    @property
    def num_targets(self) -> int:
        """Labels other than NO_TARGET; 0 if another hop has the labels."""
        return 0 if self.head is None else len(self.head.tokens)

    def close(self) -> None:
        """Free the graph and the head's gradients; a backward of it is refused from now on. A second call changes nothing."""
        self.is_open, self.graph, self.graph_bytes = False, None, 0
        self.head = None if self.head is None else self.head.without_gradients()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradients:
    """What one micro-batch gives: sums over its target tokens, in tensors that only this object holds. Nothing was added anywhere."""

    input: Tensor | None
    """[B, T, H] (or [B, T, E] for embeds), for the hop above; None for ids."""
    by_part: Mapping[Part, Mapping[str, Tensor]]
    """Of each part that was visited: gradients by the names of `Stage.parameters`. A name that is absent has a gradient of 0."""
