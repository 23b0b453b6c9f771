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
    since_s: float
    until_s: float


class Leases:
    """The indices of one version that are still to be computed."""

    def __init__(self, indices: Collection[int], lease_s: float) -> None:
        """lease_s: how long a trainer may keep an index without a report."""
        self._free = sorted(indices, reverse=True)
        self.lease_s = lease_s
        self._held: dict[int, Lease] = {}

    @property
    def is_done(self) -> bool:
        """Is every index reported?"""
        return not self._free and not self._held

    @property
    def has_free(self) -> bool:
        """Is an index in no trainer's hands?"""
        return bool(self._free)

    def held_by(self, trainer: PeerId) -> frozenset[int]:
        """What it has in hand."""
        return frozenset(index for index, lease in self._held.items() if lease.trainer == trainer)

    def lease_of(self, index: int) -> Lease | None:
        """In whose hands the index is."""
        return self._held.get(index)

    def take(self, trainer: PeerId, count: int, now_s: float) -> Sequence[int]:
        """At most `count` indices for this trainer; none if all are in other hands."""
        self.expire(now_s)
        taken = [self._free.pop() for _ in range(min(max(0, count), len(self._free)))]
        for index in taken:
            self._lease(index, trainer, now_s)
        return taken

    def keep_only(self, trainer: PeerId, running: Collection[int], now_s: float) -> Sequence[int]:
        """The trainer computes these: those of them that are free are its own from now on, and what else it had is free. The latter."""
        self.expire(now_s)
        dropped = [index for index in self.held_by(trainer) if index not in running]
        for index in dropped:
            self.give_back(index)
        for index in [index for index in running if index in self._free]:
            self._free.remove(index)
            self._lease(index, trainer, now_s)
        return dropped

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

    def drop(self, trainer: PeerId) -> Sequence[int]:
        """The trainer has gone: what it had, which is leased again."""
        dropped = tuple(self.held_by(trainer))
        for index in dropped:
            self.give_back(index)
        return dropped

    def next_expiry_s(self) -> float | None:
        """When the first lease runs out; None = nothing is leased."""
        return min((lease.until_s for lease in self._held.values()), default=None)

    def expire(self, now_s: float) -> Sequence[int]:
        """What was kept for too long is free; those indices."""
        late = [index for index, lease in self._held.items() if lease.until_s <= now_s]
        for index in late:
            self.give_back(index)
        return late

    def _lease(self, index: int, trainer: PeerId, now_s: float) -> None:
        self._held[index] = Lease(trainer, now_s, now_s + self.lease_s)
