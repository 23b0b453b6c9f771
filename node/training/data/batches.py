"""Micro-batch (version, index) of a run: a pure function of the data.

A run draws the sequences number 0, 1, 2, … of an endless line. `mixture.py` says which source gives number n and how many that source gave
before; the source goes through its sequences in an order of its own (`permutation.py`), another one in each pass. So each place of a run
costs the same to reach, two trainers draw the same, and to resume is to ask for the next index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from node.training.data.micro_batch import MicroBatch
from node.training.data.mixture import Mixture
from node.training.data.packing import Sequence, Sequences, sequences_of
from node.training.data.permutation import order_key, permuted
from node.training.data.token_data import TokenData
from protocols.errors import ConfigError
from protocols.runs import RunSpec


class Batches:
    """The batches of a run, each of `num_micro_batches` micro-batches of `micro_batch_sequences` sequences of `sequence_tokens` tokens."""

    def __init__(
        self,
        data: TokenData,
        *,
        seed: int,
        sequence_tokens: int,
        packing: bool,
        micro_batch_sequences: int,
        num_micro_batches: int,
        validation: TokenData | None = None,
    ) -> None:
        """Reads no tokens yet. ConfigError if the data is less than one batch, or some of its sources have weights and some have none."""
        self._data, self._validation, self._seed = data, validation, seed
        self._length, self._packing = sequence_tokens, packing
        self._num_sequences, self._num_micro_batches = micro_batch_sequences, num_micro_batches
        self._sources = self._cut(data)
        _refuse_less_than(self._num_sequences * num_micro_batches, self._sources, sequence_tokens)
        weights = [source.weight for source in data.sources]
        if len({weight is None for weight in weights}) > 1:
            raise ConfigError(
                f"{weights.count(None)} of {len(weights)} data sources have no weight: give all of them one, or none"
            )
        sizes = map(len, self._sources)
        self._mixture = Mixture([size if weight is None else weight for size, weight in zip(sizes, weights, strict=True)])

    @classmethod
    def of(cls, spec: RunSpec, data: TokenData, validation: TokenData | None = None) -> Batches:
        """The batches of a run. ConfigError if the run's spec names other data than this."""
        if spec.data.digest not in ("", data.digest):
            raise ConfigError(
                f"the training data has the digest {data.digest[:16]}…, expected {spec.data.digest[:16]}… of run {spec.name}: use the "
                "same text, tokenizer and weights as the run, or give another run another name"
            )
        return cls(
            data,
            seed=spec.seed,
            sequence_tokens=spec.data.sequence_tokens,
            packing=spec.data.packing,
            micro_batch_sequences=spec.batch.micro_batch_sequences,
            num_micro_batches=spec.num_micro_batches,
            validation=validation,
        )

    @property
    def num_sequences(self) -> int:
        """Sequences of one pass over all sources; without weights, a run of this length meets each exactly once."""
        return sum(map(len, self._sources))

    def micro_batch(self, version: int, index: int) -> MicroBatch:
        """Micro-batch `index` (0 <= index < num_micro_batches) of the batch that makes version + 1 of version."""
        assert version >= 0 and 0 <= index < self._num_micro_batches, f"micro-batch {index} of version {version}"
        first = (version * self._num_micro_batches + index) * self._num_sequences
        return joined(self._data, map(self._sequence, range(first, first + self._num_sequences)))

    def validation(self) -> Iterator[MicroBatch]:
        """The validation data in order, each sequence once; the last micro-batch may be smaller. Empty if there is none."""
        if self._validation is None:
            return
        sequences = (source.read(number) for source in self._cut(self._validation) for number in range(len(source)))
        while batch := list(itertools.islice(sequences, self._num_sequences)):
            yield joined(self._validation, batch)

    def _cut(self, data: TokenData) -> list[Sequences]:
        return [sequences_of(source, self._length, self._packing, data.pad_id) for source in data.sources]

    def _sequence(self, n: int) -> Sequence:
        source, given = self._mixture.place(n)
        found = self._sources[source]
        passes, place = divmod(given, len(found))
        return found.read(permuted(order_key(self._seed, source, passes), len(found), place))


def joined(data: TokenData, sequences: Iterable[Sequence]) -> MicroBatch:
    """Sequences of equal length as one micro-batch."""
    parts = list(sequences)
    labels, positions = np.stack([one.labels for one in parts]), np.stack([one.positions for one in parts])
    targets = labels[labels >= 0]
    is_plain = bool((positions == np.arange(positions.shape[1])).all())
    return MicroBatch(
        ids=np.stack([one.ids for one in parts]),
        labels=labels,
        positions=None if is_plain else positions,
        num_targets=len(targets),
        num_bytes=int(data.byte_lengths[targets].sum()),
    )


def _refuse_less_than(needed: int, sources: list[Sequences], length: int) -> None:
    for number, source in enumerate(sources):
        if not len(source):
            raise ConfigError(
                f"data source {number} has no sequence with a target: each of its documents is a single token; add text"
            )
    found = sum(map(len, sources))
    if found < needed:
        raise ConfigError(
            f"the training data has {found} sequences of {length} tokens, expected at least the {needed} of one batch: "
            "add text, or lower training.batch_tokens or data.sequence_tokens"
        )
