"""Compares gradients through two training stages with transformers' whole model.

The result is an `Outcome`.

The way is the one of real nodes: `load_parts`, `load_ends`, a `Stage` for each of two spans, the first with the embedding and the second
with the head; only the network between them is left out. The reference is the whole model on one machine, and torch's autograd. Compared
in float32: the loss, the gradient of every parameter, and those of the hidden states that enter each stage.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from family_check import NoReferenceError, Outcome, _line, _reference, middle
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from node.training.data.micro_batch import NO_TARGET
from node.training.stage import Stage
from protocols.errors import ModelNotSupportedError
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.models.skeleton import locate

EXACT_GRADIENTS = 1e-4
"""Largest error of a tensor's gradient, as the norm of the difference over its own norm."""
FLOOR = 1e-5
"""A gradient whose norm is below this part of all gradients' norm is compared with that part: it is noise (key biases, one expert)."""
SHAPE = (2, 12)
IDS = torch.randint(3, 200, SHAPE, generator=torch.Generator().manual_seed(11))
LABELS = torch.cat([IDS[:, 1:], torch.full((SHAPE[0], 1), NO_TARGET)], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one micro-batch gave."""

    loss: float
    gradients: Mapping[str, Tensor]
    """By name: blocks as NUMBER.NAME, the rest as the model calls it, and `hidden into block N`. A name that is absent has none."""


def check(name: str, make: Callable[[], Any]) -> Outcome:
    """Run one configuration; every exception becomes a verdict: equal, differs, fails, refused or incomparable."""
    started = time.monotonic()
    outcome = Outcome(name=name, verdict="fails")
    try:
        with tempfile.TemporaryDirectory() as folder:
            theirs, _ = _reference(outcome, make, Path(folder))
            whole = whole_gradients(theirs, cut := middle(theirs))
            outcome.reason = fault(whole, staged_gradients(*stages(Path(folder), cut)))
            outcome.verdict = "differs" if outcome.reason else "equal"
    except NoReferenceError as error:
        outcome.verdict, outcome.reason = "incomparable", str(error)
    except ModelNotSupportedError as error:
        outcome.verdict, outcome.reason = "refused", _line(error)
    except Exception as error:
        outcome.verdict, outcome.reason = "fails", _line(error)
    outcome.seconds = round(time.monotonic() - started, 1)
    return outcome


def stages(folder: Path, cut: int, **options: Any) -> tuple[Stage, Stage]:
    """The model of a checkpoint in two, at block `cut`; each has copies of embedding and head."""
    checkpoint = open_checkpoint(folder)
    ends = load_ends(checkpoint, dtype=torch.float32)
    spans = Span(0, cut), Span(cut, checkpoint.num_blocks)
    first, second = (load_parts(checkpoint, span, dtype=torch.float32)[1] for span in spans)
    return Stage(first, ends, checkpoint.num_blocks, **options), Stage(second, ends, checkpoint.num_blocks, **options)


def whole_gradients(model: Any, cut: int, ids: Tensor = IDS, labels: Tensor = LABELS) -> Measured:
    """The reference: one forward and one backward of transformers' model."""
    model.eval().requires_grad_(True)
    blocks, hidden = locate(model).blocks, {}

    def note(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
            hidden[number] = args[0] if args else options["hidden_states"]
            hidden[number].retain_grad()

        return hook

    hooks = [blocks[number].register_forward_pre_hook(note(number), with_kwargs=True) for number in (0, cut)]
    try:
        loss = cross_entropy(model(ids, use_cache=False).logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    inside = {id(parameter) for parameter in blocks.parameters()}
    found = dict(blocks.named_parameters()) | {name: one for name, one in model.named_parameters() if id(one) not in inside}
    gradients = {name: one.grad for name, one in found.items() if one.grad is not None}
    gradients |= {f"hidden into block {number}": tensor.grad for number, tensor in hidden.items()}
    return Measured(loss=float(loss.detach()), gradients=gradients)


def staged_gradients(first: Stage, second: Stage, ids: Tensor = IDS, labels: Tensor = LABELS, positions: Any = None) -> Measured:
    """The same by two stages: ids to the first, hidden states and labels to the second, gradients back."""
    one = first.forward(first.span, ids, positions)
    assert one.output is not None
    two = second.forward(second.span, one.output, positions, labels)
    behind = second.backward(two)
    before = first.backward(one, behind.input)
    found = {
        f"hidden into block {second.span.start}": behind.input,
        "hidden into block 0": _into_first(first, behind.input, positions),
    }
    for gradients in (behind, before):
        for names in gradients.by_part.values():
            for name, gradient in names.items():  # a tied parameter has one from either end
                found[name] = found[name] + gradient if name in found else gradient
    return Measured(loss=two.loss_sum, gradients={name: gradient for name, gradient in found.items() if gradient is not None})


def _into_first(first: Stage, gradient: Tensor | None, positions: Any) -> Tensor | None:
    with torch.no_grad():
        entered = first._ends.embed("ids", IDS, positions) if first._ends is not None else None
    assert entered is not None
    return first.backward(first.forward(first.span, entered, positions), gradient, parts=()).input


def fault(whole: Measured, staged: Measured, fixed: frozenset[str] = frozenset()) -> str:
    """ "" if both are the same, else what differs first. fixed: parameters that a stage does not train."""
    if not abs(staged.loss - whole.loss) <= EXACT_GRADIENTS * abs(whole.loss):
        return f"the loss is {staged.loss}, expected {whole.loss}"
    expected = whole.gradients
    floor = FLOOR * float(torch.stack([one.double().norm() for one in expected.values()]).norm())
    for name in sorted(expected.keys() | staged.gradients.keys()):
        zero = torch.zeros_like(expected.get(name, staged.gradients.get(name)))  # type: ignore[arg-type]
        right, got = expected.get(name, zero).double(), staged.gradients.get(name, zero).double()
        error = float((right - got).norm()) / max(float(right.norm()), floor)
        if not error <= EXACT_GRADIENTS:
            return f"the gradient of {name} is off by {error:.1e}, relative"
    return ""
