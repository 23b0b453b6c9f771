"""Checks what a pass brings before any module sees it.

An id beyond a table would be an exception on a CPU, and would end the process on a GPU.

Shapes: B sequences of T tokens, H hidden size, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from node.training.data.micro_batch import NO_TARGET
from node.training.flight import Inputs, Kind
from node.training.training_ends import TrainingEnds
from protocols.errors import BadRequestError, SpanNotServedError
from protocols.ids import Span


@dataclass(frozen=True, slots=True, kw_only=True)
class StageShape:
    """What inputs have to fit."""

    span: Span
    num_blocks: int
    hidden_size: int
    device: torch.device
    dtype: torch.dtype
    ends: TrainingEnds | None
    max_positions: int | None
    """Tokens of the longest sequence that the model takes; None: no limit."""

    def inputs(self, span: Span, values: Tensor, positions: Tensor | None, is_embeds: bool) -> Inputs:
        """Copies of them on the stage's device. BadRequestError and SpanNotServedError as of `Stage.forward`."""
        if not span.is_within(self.span):
            raise SpanNotServedError(f"blocks {span} are not trained here; blocks {self.span} are")
        kind: Kind = "embeds" if is_embeds else "hidden" if values.is_floating_point() else "ids"
        if kind != "hidden" and (self.ends is None or span.start > 0):
            raise SpanNotServedError(f"{kind} go to block 0 with its embedding, got {kind} for blocks {span} of {self.span}")
        self._check_values(kind, values)
        check_length(values.shape[1], self.max_positions)
        if positions is not None:
            check_integers("positions", positions, values.shape[:2], 0, values.shape[1])
            positions = positions.detach().to(self.device, torch.long, copy=True)
        dtype = torch.long if kind == "ids" else self.dtype
        own = values.detach().to(self.device, dtype, copy=True).requires_grad_(kind != "ids")
        return Inputs(span=span, kind=kind, values=own, positions=positions)

    def _check_values(self, kind: Kind, values: Tensor) -> None:
        if kind == "ids":
            assert self.ends is not None
            check_integers("ids", values, values.shape[:2], 0, self.ends.num_embeddings)
            return
        width = self.hidden_size if kind == "hidden" or self.ends is None else self.ends.embed_width
        if values.dim() != 3 or not values.numel() or values.shape[-1] != width or not values.is_floating_point():
            raise BadRequestError(f"{kind} are floats [B, T, {width}], got {values.dtype} {list(values.shape)}")

    def labels(self, inputs: Inputs, labels: Tensor) -> Tensor:
        """A copy on the stage's device: [B, T]. Errors as of `Stage.forward`."""
        if self.ends is None or inputs.span.stop != self.num_blocks:
            raise SpanNotServedError(
                f"labels go to the last of {self.num_blocks} blocks with its head, got some for blocks {inputs.span} of {self.span}"
            )
        check_integers("labels", labels.where(labels != NO_TARGET, 0), inputs.values.shape[:2], 0, self.ends.vocab_size)
        return labels.detach().to(self.device, torch.long, copy=True)

    def gradient(self, inputs: Inputs, gradient: Tensor) -> Tensor:
        """A copy of the gradient of the span's output on the stage's device: [B, T, H]. BadRequestError for another shape."""
        shape = (*inputs.values.shape[:2], self.hidden_size)
        if gradient.shape != shape or not gradient.is_floating_point():
            raise BadRequestError(
                f"a gradient is floats {list(shape)}, as the output, got {gradient.dtype} {list(gradient.shape)}"
            )
        return gradient.detach().to(self.device, self.dtype, copy=True)


def check_length(num_tokens: int, max_positions: int | None) -> None:
    """BadRequestError for a longer sequence than the model takes (None: no limit)."""
    if max_positions is not None and num_tokens > max_positions:
        raise BadRequestError(f"a sequence of this model has at most {max_positions} tokens, got {num_tokens}: shorten it")


def check_integers(what: str, values: Tensor, shape: tuple[int, ...], start: int, stop: int) -> None:
    """BadRequestError unless `values` are integers [B, T] of that shape, in [start, stop), and at least one."""
    is_right = len(shape) == 2 and values.shape == shape and values.numel() > 0
    is_integer = not values.is_floating_point() and not values.is_complex()
    if not (is_right and is_integer and bool(((values >= start) & (values < stop)).all())):
        raise BadRequestError(
            f"{what} are integers [B, T] from {start} to {stop - 1}, of shape {list(shape)}; got {values.dtype} {list(values.shape)}"
        )
