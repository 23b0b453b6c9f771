"""A whole run in one process: the reference for the swarm.

The same stage, sums, optimizer and schedule as in the swarm; no network, no codec, no replicas. It equals a plain torch loop over the
whole Hugging Face model (tests/node/training/test_local.py says how closely).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch

from node.device.thread import Device
from node.training.accumulate import accumulate
from node.training.data.batches import Batches
from node.training.data.micro_batch import MicroBatch
from node.training.run_units import RunUnits
from node.training.stage import Stage
from protocols.ids import ModelId, Span
from protocols.runs import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalStep:
    """One version, made by this process alone."""

    version: int
    """After the step."""
    loss_sum: float
    num_targets: int
    grad_norm: float
    """Of the mean gradient, before clipping."""


class LocalRun:
    """All units of a run, trained here."""

    def __init__(self, run: ModelId, spec: RunSpec, stage: Stage, num_blocks: int, batches: Batches) -> None:
        """stage: of all blocks, with embedding and head."""
        self.units = RunUnits(run, spec, stage, num_blocks, Device())
        self._spec, self._stage, self._span, self._batches = spec, stage, Span(0, num_blocks), batches

    @property
    def version(self) -> int:
        return self.units.version

    def step(self) -> LocalStep:
        """The next version. NonFiniteGradientError names the micro-batch whose loss or gradient is not finite: the version stays as it is,
        with the sums of the micro-batches before it."""
        version, loss_sum, num_targets = self.version, 0.0, 0
        for index in range(self._spec.num_micro_batches):
            micro_batch = self._batches.micro_batch(version, index)
            loss_sum += self._add(version, index, micro_batch)
            num_targets += micro_batch.num_targets
        norm = self.units.step_alone(num_targets)
        return LocalStep(version=version + 1, loss_sum=loss_sum, num_targets=num_targets, grad_norm=norm)

    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> tuple[float, int, int]:
        """(loss sum in nats, target tokens, UTF-8 bytes that they stand for)."""
        loss_sum, num_targets, num_bytes = 0.0, 0, 0
        for micro_batch in micro_batches:
            flight = self._stage.forward(self._span, *_tensors(micro_batch), for_backward=False)
            loss_sum, num_targets = loss_sum + flight.loss_sum, num_targets + micro_batch.num_targets
            num_bytes += micro_batch.num_bytes
        return loss_sum, num_targets, num_bytes

    def generate(self, ids: Sequence[int], num_tokens: int, ends: Collection[int] = ()) -> list[int]:
        """The likeliest continuation of at least one token, at most `num_tokens` long, or up to one of `ends`.

        Without a cache: each token costs a forward of all before it.
        """
        found: list[int] = []
        while len(found) < num_tokens and not (found and found[-1] in ends):
            flight = self._stage.forward(self._span, torch.tensor([[*ids, *found]]), for_backward=False)
            assert flight.output is not None, "no labels were given"
            found.append(int(self._stage.logits(flight.output[:, -1:])[0, -1].argmax()))
        return found

    def _add(self, version: int, index: int, micro_batch: MicroBatch) -> float:
        flight = self._stage.forward(self._span, *_tensors(micro_batch))
        gradients = self._stage.backward(flight)
        accumulate(self.units.states, gradients, index, micro_batch.num_targets, version=version)
        return flight.loss_sum


def _tensors(micro_batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """ids, positions and labels, as `Stage.forward` takes them."""
    positions = None if micro_batch.positions is None else torch.from_numpy(micro_batch.positions)
    return torch.from_numpy(micro_batch.ids), positions, torch.from_numpy(micro_batch.labels)
