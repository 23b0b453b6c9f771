"""A stage whose gradients are small integers: exact sums.

Block n is y = x * scale_n + shift_n + position % 2; the embedding is a table, the loss of a token is its hidden state times the head's
vector of its label. All parameters and ids are integers, so float32 holds every gradient exactly, and sums can be compared bit for bit.
`whole` is the same model written in one piece, as the oracle.

Shapes: B sequences of T tokens, H hidden size, V words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.training.flight import Gradients
from node.training.pass_inputs import check_integers
from protocols.errors import BadRequestError, SpanNotServedError
from protocols.ids import Span
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.training import NO_TARGET
from protocols.units import Blocks, Ends, Unit

H, V = 4, 11


def drawn(unit: Unit, width: int = H) -> dict[str, Tensor]:
    """Version 0 of a unit: the same integers at every peer."""
    rng = torch.Generator().manual_seed(1_000 if isinstance(unit, Ends) else unit.start)  # type: ignore[union-attr]
    if isinstance(unit, Ends):
        return {name: torch.randint(-3, 4, (V, width), generator=rng).float() for name in ("embed", "head")}
    return {
        "scale": torch.randint(0, 2, (width,), generator=rng).float() * 2 - 1,
        "shift": torch.randint(-2, 3, (width,), generator=rng).float(),
    }


def block(x_BTH: Tensor, parameters: dict[str, Tensor], positions_BT: Tensor | None) -> Tensor:
    positions = torch.arange(x_BTH.shape[1]).expand(x_BTH.shape[:2]) if positions_BT is None else positions_BT
    return x_BTH * parameters["scale"] + parameters["shift"] + (positions % 2)[..., None]


def loss_of(hidden_BTH: Tensor, head_VH: Tensor, labels_BT: Tensor) -> Tensor:
    is_target = labels_BT != NO_TARGET
    return (hidden_BTH[is_target] * head_VH[labels_BT[is_target].long()]).sum()


@dataclass(slots=True, eq=False, weakref_slot=True)
class ToyFlight:
    span: Span
    inputs: Tensor | None
    graph: Tensor | None
    """The output [B, T, H], or the loss."""
    is_loss: bool
    has_ids: bool
    loss_sum: float = 0.0

    @property
    def output(self) -> Tensor | None:
        return None if self.is_loss or self.graph is None else self.graph.detach()

    def close(self) -> None:
        self.graph = self.inputs = None


@dataclass
class ToyStage:
    """Blocks `span` of `num_blocks`, with embedding and head."""

    span: Span
    num_blocks: int
    width: int = H
    at: Callable[[str], None] = lambda moment: None
    """Called in the device's thread at "forward" and "backward", before each."""
    thread: threading.Thread | None = None
    held: dict[Unit, dict[str, Tensor]] = field(init=False)
    asked: list[Collection[Part] | None] = field(default_factory=list)
    """The parts of every backward."""

    def __post_init__(self) -> None:
        units: list[Unit] = [*(Blocks(n, n + 1) for n in range(self.span.start, self.span.stop)), Ends()]
        self.held = {unit: {k: v.requires_grad_() for k, v in drawn(unit, self.width).items()} for unit in units}

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(self.held)

    def parameters(self, unit: Unit) -> dict[str, Tensor]:
        return self.held[unit]

    def forward(
        self,
        span: Span,
        values: Tensor,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        is_embeds: bool = False,
        for_backward: bool = True,
    ) -> ToyFlight:
        self.at("forward")
        self.thread = threading.current_thread()
        if not span.is_within(self.span):
            raise SpanNotServedError(f"blocks {span} are not trained here; blocks {self.span} are")
        has_ids = not values.is_floating_point()
        if has_ids:
            check_integers("ids", values, values.shape[:2], 0, V)
        elif values.shape[-1] != self.width:
            raise BadRequestError(f"hidden states are floats [B, T, {self.width}], got {list(values.shape)}")
        inputs = None if has_ids else values.clone().requires_grad_()
        x = self.held[Ends()]["embed"][values.long()] if inputs is None else inputs
        for number in range(span.start, span.stop):
            x = block(x, self.held[Blocks(number, number + 1)], positions)
        if labels is None:
            return ToyFlight(span, inputs, x, is_loss=False, has_ids=has_ids)
        check_integers("labels", labels.where(labels != NO_TARGET, 0), labels.shape, 0, V)
        loss = loss_of(x, self.held[Ends()]["head"], labels)
        return ToyFlight(span, inputs, loss, is_loss=True, has_ids=has_ids, loss_sum=float(loss.detach()))

    def backward(self, flight: ToyFlight, gradient: Tensor | None = None, *, parts: Collection[Part] | None = None) -> Gradients:
        self.at("backward")
        self.asked.append(parts)
        assert flight.graph is not None
        visited = [Part.block(number) for number in range(flight.span.start, flight.span.stop)]
        visited += [EMBED] * flight.has_ids + [HEAD] * flight.is_loss
        wanted = [part for part in visited if parts is None or part in parts]
        leaves = [(part, name, self.held[part.unit][name]) for part in wanted for name in _names(part)]
        tensors = ([] if flight.inputs is None else [flight.inputs]) + [tensor for _, _, tensor in leaves]
        found = torch.autograd.grad(flight.graph, tensors, gradient, allow_unused=True) if tensors else ()
        by_part: dict[Part, dict[str, Tensor]] = {part: {} for part in wanted}
        for (part, name, tensor), of_tensor in zip(leaves, found[len(tensors) - len(leaves) :], strict=True):
            by_part[part][name] = torch.zeros_like(tensor) if of_tensor is None else of_tensor
        flight.close()
        return Gradients(input=None if flight.has_ids else found[0], by_part=by_part)


def _names(part: Part) -> tuple[str, ...]:
    return ("scale", "shift") if part.side is None else (part.side,)


@dataclass(frozen=True)
class Whole:
    """What one micro-batch gives in one piece."""

    loss_sum: float
    hidden: Tensor
    by_part: dict[Part, dict[str, Tensor]]
    of_hidden: Tensor
    """Gradient of what enters block 0."""


def whole(
    num_blocks: int, ids_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor | None = None, width: int = H,
    of_output: Tensor | None = None,
) -> Whole:  # fmt: skip
    """of_output: gradient of the last hidden states; None: of the loss."""
    ends = {name: tensor.requires_grad_() for name, tensor in drawn(Ends(), width).items()}
    blocks = [{k: v.requires_grad_() for k, v in drawn(Blocks(n, n + 1), width).items()} for n in range(num_blocks)]
    first = x = ends["embed"][ids_BT.long()]
    first.retain_grad()
    for parameters in blocks:
        x = block(x, parameters, positions_BT)
    loss = loss_of(x, ends["head"], labels_BT)
    (loss if of_output is None else (x * of_output).sum()).backward()
    by_part = {Part.block(n): {k: _gradient(v) for k, v in parameters.items()} for n, parameters in enumerate(blocks)}
    by_part |= {EMBED: {"embed": _gradient(ends["embed"])}, HEAD: {"head": _gradient(ends["head"])}}
    assert first.grad is not None
    return Whole(float(loss.detach()), x.detach(), by_part, first.grad)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
