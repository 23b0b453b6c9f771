"""A stage of a run as passes see it: compute, sums, pace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from node.training.contribution import Contribution
from node.training.flight import Gradients
from node.training.unit_state import UnitState
from protocols.errors import BadRequestError, SpanNotServedError, VersionMismatchError
from protocols.held import Held
from protocols.ids import ModelId, Span
from protocols.kept import Kept
from protocols.parts_of_units import Part
from protocols.run_status import RunStatus
from protocols.runs import RunSpec
from protocols.units import Unit

KEPT = 0.9
"""Weight of earlier micro-batches in the measured pace."""


class PassFlight(Protocol):
    """What a forward keeps for its backward (`node/training/flight.py`)."""

    @property
    def output(self) -> Tensor | None: ...

    @property
    def loss_sum(self) -> float: ...

    def close(self) -> None: ...


class ComputesPasses(Protocol):
    """Forward and backward of a node's blocks (`node/training/stage.py`); the device's thread calls both."""

    def forward(
        self,
        span: Span,
        values: Tensor,
        positions: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        is_embeds: bool = False,
        for_backward: bool = True,
    ) -> PassFlight: ...

    def backward(self, flight: Any, gradient: Tensor | None = None, *, parts: Collection[Part] | None = None) -> Gradients: ...


@dataclass(slots=True)
class Pace:
    """Measured milliseconds of one block and one micro-batch; 0 before the first."""

    forward_ms: float = 0.0
    backward_ms: float = 0.0

    def add(self, forward_ms: float, backward_ms: float, num_blocks: int) -> None:
        """Of one micro-batch through so many blocks."""
        for name, ms in (("forward_ms", forward_ms / num_blocks), ("backward_ms", backward_ms / num_blocks)):
            before = getattr(self, name)
            setattr(self, name, KEPT * before + (1 - KEPT) * ms if before else ms)


@dataclass(slots=True, kw_only=True, eq=False)
class TrainedStage:
    """The node's part of one run. Passes add to the sums of `states`; averaging takes them and steps the versions."""

    run: ModelId
    stage: ComputesPasses
    states: Mapping[Unit, UnitState]
    spec: RunSpec
    is_catching_up: bool = False
    """It fetches a newer version, and takes no micro-batch meanwhile."""
    is_paused: bool = False
    """Its owner has paused it: it takes no micro-batch, but its sums count, and it steps with the others."""
    served: tuple[int, ...] = ()
    """Published versions on which sessions may run here, the newest last."""
    agreed: Callable[[Unit], bytes] = lambda unit: b""
    """Id of the group that has agreed on a unit's next step, which is not done; b"": none."""
    kept: Kept | None = None
    """The newest checkpoint that this node keeps."""
    held: Callable[[], tuple[tuple[Held, ...], bool]] = lambda: ((), False)
    """What this node holds in memory of earlier versions, and if it has memory for others' units."""
    num_passes: int = 0
    """Micro-batches in hand."""
    pace: Pace = field(default_factory=Pace)
    contribution: Contribution = field(default_factory=Contribution)

    @contextlib.contextmanager
    def in_hand(self) -> Iterator[None]:
        """One more micro-batch, for as long as this lasts."""
        self.num_passes += 1
        try:
            yield
        finally:
            self.num_passes -= 1

    def check_size(self, index: int | None, shape: Sequence[int]) -> None:
        """BadRequestError for an index beyond the batch, or for more than one micro-batch of the run, [B, T]: it would take more memory."""
        spec = self.spec
        if index is not None and index >= spec.num_micro_batches:
            raise BadRequestError(f"micro-batch {index} is beyond the batch of {spec.num_micro_batches}")
        most = (spec.batch.micro_batch_sequences, spec.data.sequence_tokens)
        if shape[0] > most[0] or shape[1] > most[1]:
            raise BadRequestError(
                f"a micro-batch of {self.run.name} has at most {most[0]} sequences of {most[1]} tokens, got {shape[0]} of {shape[1]}: "
                "divide it"
            )

    def check_open(self, parts: Collection[Part], version: int) -> None:
        """VersionMismatchError, LedgerClosedError or SpanNotServedError if these parts take no micro-batch of this version."""
        self.check_version(parts, version)
        for unit in {part.unit for part in parts}:
            self.states[unit].check_open(version)

    def check_version(self, parts: Collection[Part], version: int) -> None:
        """As `check_open` for a pass that adds nothing: ledgers may be closed."""
        if self.is_catching_up:
            raise VersionMismatchError("this stage fetches a newer version: ask a replica, or again in a moment")
        for unit in {part.unit for part in parts}:
            if unit not in self.states:
                raise SpanNotServedError(f"{unit} is not trained here; {', '.join(map(str, sorted(self.states)))} are")
            self.states[unit].check_version(version)

    def holds(self, part: Part, index: int) -> bool:
        """Is the micro-batch in the part's sum? False for a part that is not trained here."""
        return part.unit in self.states and self.states[part.unit].holds(part, index)

    def status(self) -> RunStatus:
        """What other peers are told."""
        held, has_memory = self.held()
        return RunStatus(
            num_micro_batches=self.spec.num_micro_batches,
            units=tuple(replace(self.states[unit].status(), agreed=self.agreed(unit)) for unit in sorted(self.states)),
            queue=self.num_passes,
            forward_ms=self.pace.forward_ms,
            backward_ms=self.pace.backward_ms,
            is_catching_up=self.is_catching_up,
            is_paused=self.is_paused,
            served=self.served,
            kept=self.kept,
            held=held,
            has_memory=has_memory,
        )
