"""Forward and backward of one node's blocks, embedding and head in training.

A stage owns float32 parameters and modules of its own: no serving engine shares them. It runs in eval() mode (dropout off: research
gradients.md, trap 6), and adds nothing anywhere: gradients are new tensors, so a failure at any point leaves nothing half done. There is
no network, no clock and no thread here: all calls come from the device's thread.

Shapes: B sequences of T tokens, H hidden size, E embedding width.
Source: research/gradients.md: 259 families, gradients through consecutive spans are those of the whole model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from node.training import documents
from node.training.compute_format import Compute
from node.training.data.micro_batch import NO_TARGET
from node.training.flight import Flight, Gradients, Inputs
from node.training.graph_memory import GraphMemory, Recompute
from node.training.loss import HeadLoss, head_loss
from node.training.pass_inputs import StageShape
from node.training.span_forward import SpanForward, choose_way
from node.training.trainable import Trainable, trained
from node.training.training_ends import TrainingEnds
from protocols.errors import BadRequestError, InternalError, SpanNotServedError
from protocols.ids import Span
from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.units import Blocks, Ends, Unit
from swarm.models.loading import EndsModel
from swarm.models.parts import SpanParts

GRAPH_BYTES = 1 << 30
"""What kept graphs may take, if the caller says nothing else."""

MAX_CUTS = 8
"""Parts of the span whose modules are kept; another one is cut again, without a copy of any parameter."""


class Stage:
    """Blocks, and embedding and head if `ends` is given, of one model."""

    def __init__(
        self,
        blocks: SpanParts,
        ends: EndsModel | None,
        num_blocks: int,
        *,
        recompute: Recompute = "auto",
        graph_bytes: int = GRAPH_BYTES,
        use: Literal["copy", "frozen"] = "copy",
        max_positions: int | None = None,
        compute: Compute = "float32",
    ) -> None:
        """num_blocks: of the whole model. use: "copy" trains copies of what the two hold; "frozen" computes with their own tensors, and
        trains none: only gradients of inputs can be taken, and served bits stay. max_positions: of the longest sequence; None: no limit.

        ModelNotSupportedError: embedding and head do not run apart from the blocks, or units share a parameter.
        """
        is_trained, self.span = use == "copy", blocks.span
        self._parts = blocks.with_tensors(blocks.tensors()) if is_trained else blocks
        self._held_ends = held = None if ends is None else ends.with_tensors(ends.tensors()) if is_trained else ends.twin()
        self._ends = None if held is None else TrainingEnds(held, compute)  # freezes, so `Trainable` comes after it
        self._trainable = Trainable(trained(self._parts, held) if is_trained else {})
        whole = blocks.cut(blocks.span)
        self._shape = StageShape(
            span=blocks.span, num_blocks=num_blocks, hidden_size=whole.hidden_size, device=whole.device, dtype=whole.dtype,
            ends=self._ends, max_positions=max_positions,
        )  # fmt: skip
        self._own = [*self._parts.tensors().values(), *(() if held is None else held.tensors().values())]
        self._cuts, self._compute = OrderedDict[Span, SpanForward](), compute
        self._memory = GraphMemory(recompute, graph_bytes)
        self._way: documents.Way | None = None

    # --- parameters

    @property
    def units(self) -> tuple[Blocks | Ends, ...]:
        """Elementary training units: each block, then `Ends` if it is here. None of them in a frozen stage."""
        return self._trainable.units

    def parameters(self, unit: Unit) -> dict[str, Tensor]:
        """The trainable tensors of a unit, by the names of `SpanParts.tensors` (`3.mlp.up_proj.weight`) or `EndsModel.tensors`.

        They are the leaves themselves: writing into them in place changes the stage. SpanNotServedError for a unit that is not here.
        """
        return dict(self._trainable.of(unit))

    def tensors(self, unit: Unit) -> dict[str, Tensor]:
        """Everything that a checkpoint stores of a unit, frozen tensors included, by the names of `parameters`; for reading."""
        self._trainable.of(unit)
        if isinstance(unit, Ends):
            assert self._held_ends is not None
            return self._held_ends.tensors()
        assert isinstance(unit, Blocks)
        return {name: tensor for name, tensor in self._parts.tensors().items() if name.startswith(f"{unit.start}.")}

    def write(self, unit: Unit, tensors: Mapping[str, Tensor]) -> None:
        """Write these numbers into the parameters. BadRequestError, with nothing changed, for a name, shape or dtype that does not fit."""
        self._trainable.write(unit, tensors)

    @property
    def held_bytes(self) -> int:
        """What the graphs of open flights keep alive, besides parameters."""
        return self._memory.held_bytes

    # --- passes

    def forward(
        self,
        span: Span,
        values: Tensor,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        is_embeds: bool = False,
        for_backward: bool = True,
    ) -> Flight:
        """Run blocks `span` on one micro-batch.

        values: integers are ids [B, T], which the embedding takes first (span begins at block 0); floats are hidden states [B, T, H], or
        embeds [B, T, E] if `is_embeds`. positions [B, T], integers, restart at 0 where a document begins, and no token depends on another
        document's; None: each sequence is one document. labels [B, T], integers: the head computes the loss of the last block's output
        and, if `for_backward`, its gradient at once; NO_TARGET = none. All from any device; they are copied.
        BadRequestError: shapes or values that do not fit. SpanNotServedError: blocks, embedding or head that are not here.
        """
        with torch.inference_mode(False):
            inputs = self._shape.inputs(span, values, positions, is_embeds)
            flat = None if labels is None else self._shape.labels(inputs, labels)
            shape, count = (span.start, span.stop, inputs.values.shape[1]), len(inputs.values)
            run = partial(self._run, inputs)
            graph, graph_bytes = None, 0
            if for_backward and self._memory.keeps(shape, count):
                with torch.enable_grad():
                    graph, graph_bytes = self._memory.measured(shape, count, run, self._own)
                output = graph.detach()
            else:
                with torch.no_grad():
                    output = run()
            head = None if flat is None else self._head(output, flat, for_backward)
            flight = Flight(
                inputs=inputs, output=output if head is None else None, head=head, graph=graph, graph_bytes=graph_bytes,
                weights_stamp=self._trainable.stamp, is_open=for_backward,
            )  # fmt: skip
            self._memory.keep(flight)
            return flight

    def backward(self, flight: Flight, gradient: Tensor | None = None, *, parts: Collection[Part] | None = None) -> Gradients:
        """The gradients of a flight, which is closed by this, also if it fails.

        gradient [B, T, H]: of the flight's output; None if the loss was computed here. parts: whose gradients are wanted besides the
        input's; None: all. BadRequestError: a gradient of another shape, or one that is absent or superfluous. InternalError: the flight
        was used before, or the parameters changed since its forward.
        """
        try:
            with torch.inference_mode(False), torch.enable_grad():
                self._check(flight)
                of_output = self._of_output(flight, gradient)
                return self._backward(flight, of_output, parts)
        finally:
            flight.close()

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of states that left the last block: [B, T, H] -> [B, T, V], T at most 64; without a graph."""
        if self._ends is None:
            raise SpanNotServedError("embedding and head are not trained here")
        with torch.inference_mode(False), torch.no_grad():
            return self._ends.logits(hidden)

    # --- forward

    def _of(self, unit: Unit) -> Mapping[str, Tensor]:
        return self._trainable.of(unit) if unit in self.units else {}

    def _run(self, inputs: Inputs) -> Tensor:
        """What leaves the last block of the span; with a graph if gradients are enabled."""
        hidden, positions = inputs.values, inputs.positions
        if inputs.kind != "hidden":
            assert self._ends is not None, "checked by StageShape"
            hidden = self._ends.embed(inputs.kind, hidden, positions)
        if positions is not None and self._way is None:
            self._way = choose_way(self._parts, self.span)
        return documents.run(self._cut(inputs.span), hidden, positions, self._way or "equal")

    def _cut(self, span: Span) -> SpanForward:
        if span not in self._cuts:
            while len(self._cuts) >= MAX_CUTS:
                self._cuts.popitem(last=False)
            self._cuts[span] = SpanForward(self._parts.cut(span), self._compute)
        self._cuts.move_to_end(span)
        return self._cuts[span]

    def _head(self, output: Tensor, labels: Tensor, for_backward: bool) -> HeadLoss:
        assert self._ends is not None, "checked by StageShape"
        labels = labels.flatten()
        tokens = (labels != NO_TARGET).nonzero().flatten()
        hidden, targets = output.flatten(0, 1)[tokens], labels[tokens]
        own = list(self._of(Ends()).values()) if for_backward else None
        return head_loss(self._ends.logits, hidden, targets, tokens, own, self._ends.vocab_size)

    def _check(self, flight: Flight) -> None:
        if not flight.is_open:
            raise InternalError("a micro-batch's forward is used for one backward, got a second: send the micro-batch again")
        if flight.weights_stamp != self._trainable.stamp:
            raise InternalError("the parameters changed between forward and backward: send the micro-batch again")

    # --- backward

    def _of_output(self, flight: Flight, gradient: Tensor | None) -> Tensor:
        """The gradient of what left the span's last block, [B, T, H]."""
        if (gradient is None) != (flight.head is not None):
            raise BadRequestError("the gradient of the output comes from the hop below, or from the loss if the head is here")
        if gradient is not None:
            return self._shape.gradient(flight.inputs, gradient)
        assert flight.head is not None and flight.head.hidden is not None, "an open flight has them"
        tokens = flight.inputs.values.shape[:2]
        made: Tensor = torch.zeros(tokens.numel(), self._shape.hidden_size, dtype=self._shape.dtype, device=self._shape.device)
        made[flight.head.tokens] = flight.head.hidden
        return made.view(*tokens, -1)

    def _backward(self, flight: Flight, of_output: Tensor, parts: Collection[Part] | None) -> Gradients:
        inputs = flight.inputs
        visited = [part for part in _visited(flight) if parts is None or part in parts]
        leaves = [tensor for part in visited if part != HEAD for tensor in self._of(part.unit).values()]
        wanted = leaves if inputs.kind == "ids" else [inputs.values, *leaves]
        output = of_output if not wanted else self._run(inputs) if flight.graph is None else flight.graph
        found: tuple[Tensor | None, ...] = (None,) * len(wanted)
        if output.requires_grad:
            found = torch.autograd.grad(output, wanted, of_output, allow_unused=True)
        by_part: dict[Part, dict[str, Tensor]] = {part: {} for part in visited}
        for tensor, of_tensor in zip(leaves, found[len(found) - len(leaves) :], strict=True):
            if of_tensor is not None:
                unit, name = self._trainable.name_of(tensor)
                by_part[EMBED if isinstance(unit, Ends) else Part(unit)][name] = of_tensor
        if flight.head is not None and HEAD in by_part:
            of_head = zip(self._of(Ends()), flight.head.parameters, strict=True)
            by_part[HEAD] = {name: of_tensor for name, of_tensor in of_head if of_tensor is not None}
        return Gradients(input=None if inputs.kind == "ids" else found[0], by_part=by_part)


def _visited(flight: Flight) -> list[Part]:
    """The parts that a flight's forward ran."""
    span = flight.inputs.span
    embed = [] if flight.inputs.kind == "hidden" else [EMBED]
    return [*embed, *(Part.block(number) for number in range(span.start, span.stop)), *([] if flight.head is None else [HEAD])]
