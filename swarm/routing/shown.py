"""What the directory has shown of one model, and when.

A look at the directory may miss a peer that lives, right after deaths, so a record counts until it would have expired.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence, Set
from typing import Protocol

from protocols.defaults import RECORD_LIFE_S
from protocols.errors import PeerUnreachableError
from protocols.ids import PeerId
from protocols.inference import Hop
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from swarm.clock import Clock
from swarm.routing import absence, versions
from swarm.routing.offers import UNMEASURED_MS_PER_BLOCK, Offer, named
from swarm.routing.regard import Judge

log = logging.getLogger(__name__)

FRESH_S = 5.0
"""For so long after a look at the directory, a new session goes by what was seen: reading the DHT takes 10 ms, or a wide area's
round trips. Records are renewed every 20 s and are claims anyway: who has left since does not answer, and is replaced.
A failure ends that."""

FRESH_VERSIONS_S = 1.0
"""The same for a model in training: a new version is seen by sessions that late, at most."""


class Records(Protocol):
    """What a snapshot of the directory offers."""

    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...


class DirectoryView(Protocol):
    """What routing needs of the directory."""

    async def snapshot(self, model_name: str) -> Records: ...


class Shown:
    """Offers of one model's weights, as the directory shows them now and has shown them lately."""

    def __init__(
        self, directory: DirectoryView, weights: Weights, may_be_used: Judge, clock: Clock, all_versions: bool = False
    ) -> None:
        """all_versions: of the model in training, not only of these weights."""
        self._all_versions = all_versions
        self._directory, self._weights, self._may_be_used, self._now_s = directory, weights, may_be_used, clock.now_s
        self._looked_s = -math.inf
        """When the directory was last read."""
        self._seen: dict[PeerId, tuple[float, PeerRecord]] = {}
        """Records by peer, and when the directory last showed them."""
        self._moved: set[PeerId] = set()
        """Peers whose addresses have changed: they were started again, and have not been asked there yet."""
        self._was_served = False
        """Were our very weights served when we looked?"""

    @property
    def is_fresh(self) -> bool:
        """Was the directory read lately, and nothing failed since?"""
        return self._now_s() - self._looked_s < (FRESH_VERSIONS_S if self._all_versions else FRESH_S)

    def outdate(self) -> None:
        """A peer failed: what was seen may be out of date in more."""
        self._looked_s = -math.inf

    async def look(self, dtype: str | None, is_opening: bool, until_s: float) -> list[Offer]:
        """What the directory shows now; none if it cannot be read. It is remembered.

        Raises ModelMismatchError for a session that opens if only other weights go by this name, unless ours were there before.
        """
        peers = await self._read(until_s)
        now_s = self._now_s()
        self._seen = {peer: seen for peer, seen in self._seen.items() if now_s - seen[0] < RECORD_LIFE_S}
        before = {peer: record.addresses for peer, (_, record) in self._seen.items()}
        self._moved |= {one.peer for one in peers if before.get(one.peer, one.addresses) != one.addresses}
        self._seen |= {record.peer: (now_s, record) for record in peers}
        self._moved &= self._seen.keys()
        offers = named(peers, self._weights.model.name)
        ours = self._ours(offers, None)
        self._was_served = self._was_served or bool(ours)
        if is_opening and offers and not self._was_served:
            raise absence.mismatch(offers, self._weights)
        return self._ours(ours, dtype)

    async def _read(self, until_s: float) -> tuple[PeerRecord, ...]:
        try:
            async with asyncio.timeout(max(0.0, until_s - self._now_s())):
                peers = (await self._directory.snapshot(self._weights.model.name)).peers
        except (PeerUnreachableError, TimeoutError) as error:  # our p2pd is being started again, or no peer answers
            log.warning("the directory cannot be read, we look again: %s", error)
            self.outdate()
            return ()
        self._looked_s = self._now_s()
        return peers

    def take_moved(self, peers: Set[PeerId]) -> Set[PeerId]:
        """Those of `peers` whose addresses have changed since they were last taken: each is told once for each change."""
        moved = self._moved & peers
        self._moved -= moved
        return moved

    def remembered(self, dtype: str | None) -> list[Offer]:
        """What the directory has shown within the life of a record. Who has left since does not answer, and is blamed then."""
        oldest_s = self._now_s() - RECORD_LIFE_S
        records = (record for seen_s, record in self._seen.values() if seen_s > oldest_s)
        return self._ours(named(records, self._weights.model.name), dtype)

    def _ours(self, offers: Sequence[Offer], dtype: str | None) -> list[Offer]:
        """Those of our very weights, at peers that may be used."""
        ours = [offer for offer in offers if self._is_ours(offer.hosted.weights)]
        return [o for o in ours if (dtype is None or o.hosted.dtype == dtype) and self._may_be_used(o.record.peer)]

    def _is_ours(self, weights: Weights) -> bool:
        return versions.is_version_of(weights, self._weights) if self._all_versions else weights == self._weights

    def announced_ms(self, hop: Hop) -> float:
        """What a decode step takes at this hop, queue included, as its peer announces it."""
        _, record = self._seen.get(hop.peer, (0.0, None))
        hosted = record.blocks() if record else ()
        for one in hosted:
            alone_ms = (one.load.block_ms or UNMEASURED_MS_PER_BLOCK) * len(hop.span)
            if self._is_ours(one.weights) and hop.span.is_within(one.span):
                return (one.load.step_ms or alone_ms) * (1 + one.load.queue)
        return UNMEASURED_MS_PER_BLOCK * len(hop.span)
