"""What the device's thread does for one pass: forward, backward, adding.

The values of frames are unpacked, checked and packed here, too, so that the event loop computes nothing.
"""

from __future__ import annotations

import math

from torch import Tensor

from node.training.accumulate import accumulate
from node.training.flight import Gradients
from node.training.trained_stage import ComputesPasses, PassFlight, TrainedStage
from protocols import compression
from protocols.errors import BadRequestError, NonFiniteGradientError, NonsenseError, TensorFormatError
from protocols.parts_of_units import Part
from protocols.tensors import WireTensor
from protocols.training import NO_TARGET, Pass
from swarm import faults
from swarm.training.chain import PassError, parts_of_hop


class PassCompute:
    """One pass on a stage. `forward`, then `backward` or `drop`; the first two in the device's thread."""

    def __init__(self, sent: Pass, stage: ComputesPasses, trained: TrainedStage | None) -> None:
        """trained: the run whose weights these are, and whose sums take the gradients of training; None: a client's autograd."""
        self._sent, self._stage, self._trained = sent, stage, trained
        self._parts = parts_of_hop(sent, sent.hop) - set(sent.skip) if trained else frozenset[Part]()
        """Parts that are to add the micro-batch, if they do not hold it."""
        self._flight: PassFlight | None = None
        self._is_running = self._is_dropped = False
        self.loss_sum = 0.0
        self.added: tuple[Part, ...] = ()
        self.held: tuple[Part, ...] = ()
        """As a receipt says."""

    def forward(self) -> WireTensor | None:
        """The output for the next hop, or None if the loss was computed here.

        VersionMismatchError, LedgerClosedError: our weights are others. BadRequestError, NonsenseError: values that cannot be used.
        NonFiniteGradientError: NaN or infinity in the output or the loss. Nothing was added in any case.
        """
        sent = self._sent
        self._check_open()
        wants_loss = sent.is_last and sent.want == "loss"
        labels = None if sent.labels is None else compression.unpack(sent.labels)
        if labels is not None and (num := int((labels != NO_TARGET).sum())) != sent.num_targets:
            raise BadRequestError(f"a pass of {sent.num_targets} targets has {num} labels that are not {NO_TARGET}")
        positions = None if sent.positions is None else compression.unpack(sent.positions)
        self._is_running = True
        faults.point("training_forward", sent.index or 0)
        try:
            flight = self._stage.forward(
                sent.here.span, self._values(), positions, labels if wants_loss else None, is_embeds=sent.is_embeds,
                for_backward=not sent.is_evaluation,
            )  # fmt: skip
            self._flight, self.loss_sum = flight, flight.loss_sum
            if not math.isfinite(self.loss_sum):
                raise NonFiniteGradientError(
                    f"the loss of {_name(sent)} is {self.loss_sum}: look at its data, or at the learning rate"
                )
            return None if flight.output is None else self._packed(flight.output, "hidden states")
        finally:
            self._ended()

    def backward(self, gradient: WireTensor | None) -> WireTensor | None:
        """Gradient of the output in, gradient of the input out (None for ids); those of the weights are added, all of them or none.

        Errors, with nothing added: as of `forward`, and of `UnitState.check`. PassError: the next hop's gradient is not finite.
        """
        flight, self._flight = self._flight, None
        assert flight is not None
        self._is_running = True
        try:
            self._check_open()
            of_output = None if gradient is None else self._gradient(gradient)
            faults.point("training_backward", self._sent.index or 0)
            gradients = self._stage.backward(flight, of_output, parts=self._not_held())
            packed = None if gradients.input is None else self._packed(gradients.input, "the input's gradient")
            self._add(gradients)
            faults.point("training_added", self._sent.index or 0)
            return packed
        finally:
            flight.close()
            self._ended()

    def drop(self) -> None:
        """Free what the forward keeps, at once, or when what runs has ended. From any thread; a second call changes nothing."""
        self._is_dropped = True
        if not self._is_running:
            self._close()

    def _ended(self) -> None:
        self._is_running = False
        if self._is_dropped:
            self._close()

    def _close(self) -> None:
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.close()

    def _check_open(self) -> None:
        """Our weights must be of the version in every part; a part that holds the micro-batch adds nothing, so its sum may be closed."""
        trained, sent = self._trained, self._sent
        if trained is None:
            return
        trained.check_version(parts_of_hop(sent, sent.hop), sent.version)
        if sent.is_training and sent.index is not None:
            trained.check_open([part for part in self._parts if not trained.holds(part, sent.index)], sent.version)

    def _not_held(self) -> frozenset[Part]:
        trained, index = self._trained, self._sent.index
        if trained is None or index is None:
            return frozenset()
        self.held = tuple(part for part in sorted(self._parts) if trained.holds(part, index))
        return self._parts - set(self.held)

    def _add(self, gradients: Gradients) -> None:
        if self._trained is not None and self._sent.index is not None:
            done = accumulate(
                self._trained.states, gradients, self._sent.index, self._sent.num_targets, version=self._sent.version,
                skip=self._sent.skip,
            )  # fmt: skip
            self.added, self.held = done.added, self.held + done.held

    def _values(self) -> Tensor:
        try:
            return compression.unpack(self._sent.payload, finite=True)
        except TensorFormatError as error:
            if not self._sent.hop:
                raise
            raise NonsenseError(f"the hop above sent hidden states that cannot be used: {error}") from None

    def _gradient(self, gradient: WireTensor) -> Tensor:
        try:
            return compression.unpack(gradient, finite=True)
        except TensorFormatError as error:
            sent, text = self._sent, f"a gradient of {_name(self._sent)} cannot be used: {error}"
            if sent.is_last:
                raise NonFiniteGradientError(text) from None
            raise PassError(sent.hop + 1, sent.route[sent.hop + 1].peer, NonsenseError(text)) from None

    def _packed(self, values: Tensor, what: str) -> WireTensor:
        try:
            return compression.pack(values, self._sent.codec, finite=True)
        except TensorFormatError as error:
            raise NonFiniteGradientError(f"{what} of {_name(self._sent)} cannot be sent: {error}") from None


def _name(sent: Pass) -> str:
    if sent.index is not None:
        return f"micro-batch {sent.index} of version {sent.version}"
    return f"an evaluation of version {sent.version}" if sent.is_evaluation else f"a client's pass of {sent.run.name}"
