"""Which trainer computes which micro-batch of a version.

The coordinating trainer leases the indices of the version to all trainers, itself included. A lease has a deadline: an index whose trainer
has not reported it by then is leased again. Leases decide speed only: that an index counts once is the ledgers' work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId


@dataclass(frozen=True, slots=True)
class Lease:
    """One index in one trainer's hands."""

    trainer: PeerId
    until_s: float


class Leases:
    """The indices of one version that are still to be computed."""

    def __init__(self, indices: Collection[int], lease_s: float) -> None:
        """lease_s: how long a trainer may keep an index without a report."""
        self._free = sorted(indices, reverse=True)
        self._lease_s = lease_s
        self._held: dict[int, Lease] = {}

    @property
    def is_done(self) -> bool:
        """Is every index reported?"""
        return not self._free and not self._held

    def take(self, trainer: PeerId, count: int, now_s: float) -> Sequence[int]:
        """At most `count` indices for this trainer; none if all are in other hands."""
        self._expire(now_s)
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        for index in taken:
            self._held[index] = Lease(trainer, now_s + self._lease_s)
        return taken

    def report(self, index: int) -> None:
        """It is in the ledgers. A second report, or one of an index that was leased again, changes nothing more."""
        self._held.pop(index, None)
        if index in self._free:
            self._free.remove(index)

    def give_back(self, index: int) -> None:
        """Its trainer could not have it computed, or a stage that held it has died: it is leased again."""
        self._held.pop(index, None)
        if index not in self._free:
            self._free.append(index)

    def drop(self, trainer: PeerId) -> None:
        """The trainer has gone: what it had is leased again."""
        for index in [index for index, lease in self._held.items() if lease.trainer == trainer]:
            self.give_back(index)

    def next_expiry_s(self) -> float | None:
        """When the first lease runs out; None = nothing is leased."""
        return min((lease.until_s for lease in self._held.values()), default=None)

    def _expire(self, now_s: float) -> None:
        for index in [index for index, lease in self._held.items() if lease.until_s <= now_s]:
            self.give_back(index)
