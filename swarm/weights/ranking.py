"""In which order peers are asked for weights.

Those that have delivered come first; of the others half by what they announce, half by lot.

What a peer announces of itself is only a claim. An unproven peer that claims all blocks at any speed gets at most the places of one half;
the other half goes by lot, so that PeerIDs, claims and the order of a directory's answer gain nothing there. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from protocols.hosted import Hosted
from protocols.ids import PeerId
from protocols.records import PeerRecord
from protocols.units import Blocks, Unit, is_part
from swarm.weights.reputation import GAVE, UNKNOWN

FAST_BYTES_S = 12_500_000
"""Of announced upload caps, those from here on count as none."""

MAX_COMPARED = 64
"""Unproven peers whose announcements are compared with each other, which costs the square of their number; drawn by lot."""

Rank = Callable[[PeerId], int]
"""`Reputation.rank`."""


def ranked(
    records: Iterable[PeerRecord],
    digest: str,
    units: Collection[Unit],
    me: PeerId,
    draw: Callable[[], float],
    rank: Rank = lambda peer: UNKNOWN,
) -> list[PeerRecord]:
    """Peers that serve these weights, each once, in the order in which to ask them. units: what is to be fetched. draw: a random number
    below 1."""
    able = [record for record in records if record.peer != me and record.state != "draining" and record.hosted_of(digest)]
    wanted = _wanted(units)
    offers = {record.peer: _offers(record.hosted_of(digest), wanted) for record in able}
    lots = {record.peer: draw() ** (FAST_BYTES_S / _cap(record)) for record in able}
    proven = _covering([record for record in able if rank(record.peer) == GAVE], offers, wanted, lots)
    others = [record for record in able if rank(record.peer) != GAVE]
    drawn = sorted(others, key=lambda one: (not offers[one.peer], rank(one.peer), -lots[one.peer]))
    by_claims = _covering([one for one in drawn if rank(one.peer) <= UNKNOWN][:MAX_COMPARED], offers, wanted, lots)
    return proven + _interleaved(by_claims, drawn)


def by_lot(records: Iterable[PeerRecord], draw: Callable[[], float], rank: Rank) -> list[PeerRecord]:
    """For what all of them should have: by what they have done, then by lot."""
    lots = [(rank(record.peer), draw(), number, record) for number, record in enumerate(records)]
    return [record for _rank, _lot, _number, record in sorted(lots, key=lambda one: one[:3])]


def _cap(record: PeerRecord) -> int:
    """Only a low cap is believed: it costs only the peer that claims it."""
    return min(record.upload_bytes_s or FAST_BYTES_S, FAST_BYTES_S)


def _covering(
    records: Sequence[PeerRecord], offers: dict[PeerId, set[Unit]], wanted: set[Unit], lots: dict[PeerId, float]
) -> list[PeerRecord]:
    """First those that announce most of what no peer before them announces, so that a few sources have all of it."""
    waiting, order, open_ = list(records), [], set(wanted)
    while waiting:
        best = max(waiting, key=lambda one: (len(open_ & offers[one.peer]), lots[one.peer], _cap(one)))
        if not open_ & offers[best.peer] and open_ != wanted:
            open_ = set(wanted)  # all that is announced is covered once: from here on, cover it again
            continue
        order.append(best)
        waiting.remove(best)
        open_ -= offers[best.peer]
    return order


def _interleaved(first: Sequence[PeerRecord], second: Sequence[PeerRecord]) -> list[PeerRecord]:
    """One of each in turn, each record once."""
    order: dict[PeerId, PeerRecord] = {}
    queues = [list(reversed(first)), list(reversed(second))]
    while queues[0] or queues[1]:
        for queue in queues:
            while queue:
                record = queue.pop()
                if record.peer not in order:
                    order[record.peer] = record
                    break
    return list(order.values())


def _wanted(units: Iterable[Unit]) -> set[Unit]:
    """Blocks one by one, since each may be of another peer; other units as they are."""
    found: set[Unit] = set()
    for unit in units:
        if isinstance(unit, Blocks):
            found |= {Blocks(block, block + 1, unit.stack) for block in range(unit.start, unit.stop)}
        else:
            found.add(unit)
    return found


def _offers(hosted: Sequence[Hosted], wanted: set[Unit]) -> set[Unit]:
    return {unit for unit in wanted if any(is_part(unit, one.unit) for one in hosted)}
