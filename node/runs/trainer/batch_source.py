"""The batches of a run as they travel: tensors of a pass."""

from __future__ import annotations

from node.runs.opening import RunData
from node.training.data.batches import Batches
from node.training.data.micro_batch import Ids, MicroBatch
from node.training.data.token_data import TokenData
from protocols.runs import RunSpec
from protocols.tensors import WireTensor
from swarm.training.pipeline import Drawn


class BatchSource:
    """Micro-batches as they travel."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def draw(self, version: int, index: int) -> Drawn:
        """As `pipeline.Source.draw`."""
        return drawn(self._batches.micro_batch(version, index))


def drawn(micro_batch: MicroBatch) -> Drawn:
    """A micro-batch as it travels."""
    return Drawn(
        ids=_wire(micro_batch.ids),
        labels=_wire(micro_batch.labels),
        positions=None if micro_batch.positions is None else _wire(micro_batch.positions),
        num_targets=micro_batch.num_targets,
    )


def batches_of(data: RunData, spec: RunSpec, validation: TokenData | None = None) -> Batches:
    """The batches of a run, from the data of this machine. ConfigError if the run's spec names other data."""
    assert data.train is not None, "a trainer has the data"
    return Batches.of(spec, data.train, validation)


def _wire(values: Ids) -> WireTensor:
    return WireTensor("int32", tuple(values.shape), "none", values.astype("<i4", copy=False).tobytes())
