"""Records of the peers of one run, as the directory shows them.

It may show none though all are there, as right after p2pd was started again, so a record counts until it would have expired.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence, Set
from typing import Protocol

from protocols.defaults import RECORD_LIFE_S
from protocols.directory import MAX_ENTRIES
from protocols.errors import NoRouteError, PeerUnreachableError
from protocols.ids import ModelId, PeerId
from protocols.records import PeerRecord
from swarm.clock import Clock

log = logging.getLogger(__name__)


class Peers(Protocol):
    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...

    @property
    def withdrawn(self) -> Set[PeerId]: ...


class Directory(Protocol):
    """`swarm.directory.directory.Directory`, or the one that asks by gRPC."""

    async def snapshot(self, model: str) -> Peers: ...


class KnownRecords:
    """What the directory shows of one run now, and has shown within the life of a record. A peer that has withdrawn goes at once."""

    def __init__(self, run: ModelId, directory: Directory, me: PeerId | None, clock: Clock) -> None:
        """me: this peer, which is left out."""
        self._run, self._directory, self._me, self._now_s = run, directory, me, clock.now_s
        self._seen: dict[PeerId, tuple[float, PeerRecord]] = {}
        """Records by peer, and when the directory last showed them; those that it showed last stand last."""
        self._read_s = -math.inf
        """When the directory was read."""
        self._was_read = False

    def outdate(self) -> None:
        """The next `read` asks the directory."""
        self._read_s = -math.inf

    async def read(self, max_age_s: float) -> Sequence[PeerRecord]:
        """What is known now, or was so many seconds ago; what was known last while the directory cannot be asked. NoRouteError if it never
        could be."""
        if self._now_s() - self._read_s >= max_age_s:
            try:
                self._take(await self._directory.snapshot(self._run.name))
            except PeerUnreachableError as error:  # our DHT is being started again: the peers are where they were
                if not self._was_read:
                    raise NoRouteError(f"the peers of {self._run.name} are not known yet: {error}") from error
                log.warning("the directory cannot be asked for the peers of %s now: %s", self._run.name, error)
        return [record for _, record in self._seen.values()]

    def _take(self, shown: Peers) -> None:
        now_s = self._read_s = self._now_s()
        self._was_read = True
        records = {record.peer: (now_s, record) for record in shown.peers if record.peer != self._me}
        gone = shown.withdrawn | records.keys()
        before = {peer: one for peer, one in self._seen.items() if peer not in gone and now_s - one[0] < RECORD_LIFE_S}
        surplus = max(0, len(before) + len(records) - MAX_ENTRIES)
        self._seen = dict(list(before.items())[surplus:]) | records
