"""A frozen view of the peers of one model."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocols.directory import parse_names
from protocols.entries import SignedEntry
from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord

log = logging.getLogger(__name__)

_TURN = 50
"""Records that are parsed before other tasks of the event loop may run."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was announced under a model's name at one moment; signatures checked, nothing expired."""

    model: str
    peers: tuple[PeerRecord, ...]
    """In the order of their PeerIDs, whatever their state; each announces a span of this model, or is about to."""
    taken_s: float
    """Unix time."""

    withdrawn: frozenset[PeerId] = frozenset()
    """Peers that have announced this model, and said since that this no longer holds."""


async def of_entries(model: str, entries: Mapping[PeerId, SignedEntry], now_s: float) -> Snapshot:
    """What peers say of a model, by author, signatures checked already. What does not parse is left out.

    A record takes 0.1 ms to read, and there may be 2,000, so the event loop has a turn in between.
    """
    records: list[PeerRecord] = []
    for number, (peer, entry) in enumerate(sorted(entries.items())):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        if record := _read(peer, entry):
            records.append(record)
    withdrawn = frozenset(peer for peer, entry in entries.items() if not entry.payload)
    return Snapshot(model, tuple(records), now_s, withdrawn)


async def counted(entries: Mapping[PeerId, SignedEntry], has_met: Callable[[PeerId], bool]) -> dict[str, int]:
    """Names of models in what peers say of them, with the number of peers of each; those first that most peers name whom we have met,
    then those of most peers at all: a name is made up as easily as a peer."""
    counts: Counter[str] = Counter()
    met: Counter[str] = Counter()
    for number, (peer, entry) in enumerate(tuple(entries.items())):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        names = set(_names(entry))
        counts.update(names)
        met.update(names if has_met(peer) else ())
    return dict(sorted(counts.items(), key=lambda item: (-met[item[0]], -item[1], item[0])))


def _read(peer: PeerId, entry: SignedEntry) -> PeerRecord | None:
    try:
        record = PeerRecord.parse(entry.payload) if entry.payload else None
    except SwarmError as error:
        log.debug("the record of peer %s does not parse: %s", short_peer(peer), error)
        return None
    return record if record and record.peer == peer else None


def _names(entry: SignedEntry) -> tuple[str, ...]:
    try:
        return parse_names(entry.payload) if entry.payload else ()
    except SwarmError:
        return ()
