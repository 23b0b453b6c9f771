"""Which stage holds which micro-batch of one version, by the receipts.

A micro-batch of a version counts once in every part of the model. Receipts say which stage has added it; a stage that dies takes its sums
with it, so the micro-batches that only it held are missing again, in its parts alone. They are computed anew through the whole model, and
the parts that another stage still holds are skipped: those give the gradient of their input and add nothing.

This is the trainer's view, for speed. What counts is the ledgers, which the stages compare when the version is closed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from protocols.ids import PeerId
from protocols.masks import indices_of
from protocols.parts_of_units import Part


class Progress:
    """The receipts of one version. An index is one of [0, num_indices)."""

    def __init__(self, num_indices: int, parts: Collection[Part]) -> None:
        """parts: all parts of the model."""
        self._num_indices = num_indices
        self._holders: dict[Part, dict[int, PeerId]] = {part: {} for part in parts}
        self._agreed: set[Part] = set()

    def add(self, index: int, peer: PeerId, parts: Iterable[Part]) -> None:
        """The peer says that its sums of these parts have the index. Parts of no unit of the model are ignored."""
        for part in parts:
            if part in self._holders:
                self._holders[part][index] = peer

    def compare(self, peer: PeerId, ledger: Mapping[Part, int]) -> None:
        """The peer has said what is in its sums, as masks (bit n: index n): that alone is what it holds. ledger: of all its parts."""
        for part, mask in ledger.items():
            holders = self._holders.get(part, {})
            for index in [index for index, holder in holders.items() if holder == peer and not mask >> index & 1]:
                del holders[index]
            for index in indices_of(mask):
                holders.setdefault(index, peer)

    def agree(self, parts: Iterable[Part]) -> None:
        """A group has agreed on these: every micro-batch is in what its members hold, whichever of them lives, and none is added."""
        self._agreed.update(parts)

    def lose(self, peer: PeerId) -> None:
        """The peer has died: what its sums had is missing."""
        for holders in self._holders.values():
            for index in [index for index, holder in holders.items() if holder == peer]:
                del holders[index]

    def correct(self, part: Part, indices: Collection[int]) -> None:
        """The stages have compared their ledgers: of this part, these indices are missing. What had agreed on it is gone."""
        self._agreed.discard(part)
        for index in indices:
            self._holders[part].pop(index, None)

    def missing(self) -> list[int]:
        """The indices that at least one part lacks, in order."""
        held = [holders.keys() for part, holders in self._holders.items() if part not in self._agreed]
        return [index for index in range(self._num_indices) if not all(index in one for one in held)]

    def skipped(self, index: int, route: Mapping[Part, PeerId]) -> tuple[Part, ...]:
        """The parts in which another stage than the route's holds the index, or a group has agreed: there it must not be added."""
        return tuple(part for part, peer in route.items() if part in self._agreed or self._holders[part].get(index, peer) != peer)

    def holders_of(self, index: int) -> set[PeerId]:
        """The stages that hold the index in some part."""
        return {holders[index] for holders in self._holders.values() if index in holders}

    @property
    def is_empty(self) -> bool:
        """Does no stage hold anything?"""
        return not any(self._holders.values()) and not self._agreed
