"""Version, chain, gradient sum and ledger of one training unit.

The sum is one flat float32 buffer: the unit's trainable tensors one after the other, names sorted, each row-major. That order is the
canonical one: replicas average buffers, and never names. Nothing is added unless all of it is right, so a sum has an index whole, or not
at all. All methods may be called from any thread; `add` and `accumulate` take as long as adding takes.

Shapes: N float32 values of the unit's trainable tensors together.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from node.training.ledger import UnitLedger
from protocols.cards import UnitSum
from protocols.errors import BadRequestError, LedgerClosedError, NonFiniteGradientError, VersionMismatchError
from protocols.parts_of_units import Part
from protocols.run_status import UnitStatus
from protocols.units import Unit

MAX_NORM: Final = 1e6
"""Largest norm of a unit's gradient per target token. A wild start has some hundred; a sum within it cannot overflow."""


class UnitState:
    """One elementary unit of one run at one peer. The parameters themselves are the stage's."""

    def __init__(self, unit: Unit, parameters: Mapping[str, Tensor], *, version: int = 0, chain: bytes = b"") -> None:
        """parameters: for their names, shapes and device; the sum begins empty, and is open."""
        self.unit = unit
        self._version, self._chain = version, chain
        self._shapes = {name: tensor.shape for name, tensor in sorted(parameters.items())}
        device = next((tensor.device for tensor in parameters.values()), torch.device("cpu"))
        self._flat = torch.zeros(sum(shape.numel() for shape in self._shapes.values()), device=device)
        self._sums = self.views(self._flat)
        self._ledger, self._is_open = UnitLedger(unit), True
        self.lock = threading.RLock()
        """Held while the state changes."""

    @property
    def version(self) -> int:
        """Optimizer steps that were applied."""
        return self._version

    @property
    def chain(self) -> bytes:
        """32 bytes that tell apart two histories of equal length; b"" at version 0."""
        return self._chain

    @property
    def is_open(self) -> bool:
        """May something be added?"""
        return self._is_open

    @property
    def num_values(self) -> int:
        """N."""
        return self._flat.numel()

    @property
    def flat(self) -> Tensor:
        """The gradient sum itself, float32 [N]: it changes with every `add`, so read it while the ledger is closed."""
        return self._flat

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into a buffer of N values, by name, in the canonical order."""
        if flat.shape != (size := sum(shape.numel() for shape in self._shapes.values()),):
            raise BadRequestError(f"{self.unit} has {size} trainable values, got a buffer of {list(flat.shape)}")
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    # --- what it holds

    def holds(self, part: Part, index: int) -> bool:
        """Is this micro-batch of the present version in the part's sum?"""
        with self.lock:
            return self._ledger.holds(part, index)

    def unit_sum(self) -> UnitSum:
        """What a card says of this unit."""
        with self.lock:
            return UnitSum(num_values=self.num_values, chain=self._chain, held=tuple(self._ledger.masks.values()))

    def num_targets(self) -> dict[int, int]:
        """Target tokens of each index that is in the sum of any part."""
        with self.lock:
            return self._ledger.num_targets

    def status(self) -> UnitStatus:
        """What other peers are told."""
        with self.lock:
            return UnitStatus(unit=self.unit, version=self._version, chain=self._chain, ledger=self._ledger.masks)

    # --- adding

    def add(self, part: Part, index: int, gradients: Mapping[str, Tensor], num_targets: int, *, version: int) -> None:
        """Add one micro-batch's gradient of `part`: by name, any float dtype; an absent name adds 0. All of it, or nothing.

        Errors, with nothing changed: as of `check`.
        """
        with self.lock:
            self.check(part, index, gradients, num_targets, version=version)
            self.put(part, index, gradients, num_targets)

    def put(self, part: Part, index: int, gradients: Mapping[str, Tensor], num_targets: int) -> None:
        """Add what `check` has passed; `lock` has been held since."""
        for name, gradient in gradients.items():
            self._sums[name].add_(gradient.detach())
        self._ledger.add(part, index, num_targets)

    def check(self, part: Part, index: int, gradients: Mapping[str, Tensor], num_targets: int, *, version: int) -> None:
        """Raise what `add` would raise.

        VersionMismatchError: the gradient is of another version. LedgerClosedError: the sum is being averaged. BadRequestError: a name or
        shape that does not fit, an index that is there already, numbers out of range. NonFiniteGradientError: NaN, infinity, or a norm of
        more than MAX_NORM per target token.
        """
        self.check_open(version)
        self._ledger.check(part, index, num_targets)
        for name, gradient in gradients.items():
            expected = self._shapes.get(name)
            if expected != gradient.shape or not gradient.is_floating_point():
                is_known = "is not trained" if expected is None else f"has shape {list(expected)}"
                raise BadRequestError(f"{name} of {self.unit} {is_known}, got a gradient {gradient.dtype} {list(gradient.shape)}")
        _check_norm(f"micro-batch {index} of {part}", gradients, num_targets)

    def check_open(self, version: int) -> None:
        """Raise the errors of `check` that depend on the version alone."""
        self.check_version(version)
        if not self._is_open:
            raise LedgerClosedError(f"{self.unit} of version {version} is being averaged: ask for its next version in a moment")

    def check_version(self, version: int) -> None:
        """VersionMismatchError if the parameters are of another version."""
        if version != self._version:
            raise VersionMismatchError(
                f"{self.unit} has version {self._version} here, the pass is of {version}: compute it again"
            )

    # --- the end of a version

    def close(self) -> None:
        """Nothing is added from now on. A second call changes nothing."""
        with self.lock:
            self._is_open = False

    def reopen(self) -> None:
        """The group has not agreed: sum and ledger stay as they are, and more may be added."""
        with self.lock:
            self._is_open = True

    def reset(self) -> None:
        """Empty sum and ledger, open, of the same version."""
        self.restore(self._version, self._chain)

    def restore(self, version: int, chain: bytes) -> None:
        """The parameters are of this version now: after a step, or fetched from a peer. Empty sum and ledger, open."""
        with self.lock:
            self._version, self._chain = version, chain
            self._flat.zero_()
            self._ledger.clear()
            self._is_open = True


def _check_norm(what: str, gradients: Mapping[str, Tensor], num_targets: int) -> None:
    if not gradients:
        return
    values, bound = [gradient.detach() for gradient in gradients.values()], MAX_NORM * max(1, num_targets)
    if float(torch.linalg.vector_norm(torch.stack([norm.float() for norm in torch._foreach_norm(values)]))) <= bound / 2:
        return  # float32 is enough to see that it is far below
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in values]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if not norm <= bound:
        worst = max(zip(norms, gradients, strict=True), key=lambda pair: float(pair[0].nan_to_num(torch.inf)))[1]
        raise NonFiniteGradientError(
            f"the gradient of {what} has norm {norm:.3g}, most in {worst}; at most {bound:.3g} is added: look at this micro-batch's data"
        )


def flat_sums(states: Sequence[UnitState]) -> Tensor:
    """The sums of units one after the other, in the order given: a copy, float32 [sum of N], contiguous, on the CPU."""
    return torch.cat([state.flat.cpu() for state in states])


def by_unit(states: Sequence[UnitState], values: Tensor) -> dict[Unit, dict[str, Tensor]]:
    """What `flat_sums` of the same units is made of: views into `values`, by unit and name. BadRequestError if the size differs."""
    sizes = [state.num_values for state in states]
    if values.shape != (sum(sizes),):
        raise BadRequestError(f"{len(states)} units have {sum(sizes)} trainable values, got {list(values.shape)}")
    return {state.unit: state.views(part) for state, part in zip(states, values.split(sizes), strict=True)}
