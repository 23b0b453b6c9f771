"""A frozen view of the peers of one model.

It answers questions about gaps and digests without asking a peer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocols.directory import parse_names
from protocols.entries import SignedEntry
from protocols.errors import SwarmError
from protocols.ids import PeerId, Span, short_peer
from protocols.records import PeerRecord, ServedSpan

log = logging.getLogger(__name__)

_TURN = 50
"""Records between two turns of the event loop."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was announced under a model's name at one moment; signatures checked, nothing expired."""

    model: str
    peers: tuple[PeerRecord, ...]
    """In the order of their PeerIDs, whatever their state; each announces a span of this model, or is about to."""
    taken_s: float
    """Unix time."""

    def spans(self, digest: str | None = None) -> tuple[tuple[PeerRecord, ServedSpan], ...]:
        """Every announced span of this model (with that digest), with its peer."""
        return tuple(
            (peer, span)
            for peer in self.peers
            for span in peer.spans
            if span.model.name == self.model and digest in (None, span.model.digest)
        )

    def digests(self) -> tuple[str, ...]:
        """Digests under which the name is announced, the one with the most peers first. More than one is a warning."""
        counts = Counter(span.model.digest for _peer, span in self.spans())
        return tuple(sorted(counts, key=lambda digest: (-counts[digest], digest)))

    def num_blocks(self, digest: str | None = None) -> int | None:
        """Blocks of the model, as most peers say; None where nobody announces it."""
        counts = Counter(span.num_blocks for _peer, span in self.spans(digest))
        return max(counts, key=lambda blocks: (counts[blocks], blocks)) if counts else None

    def serving(self, digest: str | None = None) -> tuple[tuple[PeerRecord, ServedSpan], ...]:
        """Spans whose peer is ready to compute: neither joining nor draining."""
        return tuple((peer, span) for peer, span in self.spans(digest) if peer.state_of(span) == "serving")

    def missing(self, num_blocks: int, digest: str | None = None) -> list[Span]:
        """Maximal runs of blocks that nobody serves now."""
        served = [False] * num_blocks
        for _peer, span in self.serving(digest):
            stop = min(span.span.stop, num_blocks)
            served[span.span.start : stop] = [True] * max(0, stop - span.span.start)
        gaps: list[Span] = []
        start = None
        for block, is_served in enumerate([*served, True]):
            if not is_served and start is None:
                start = block
            elif is_served and start is not None:
                gaps.append(Span(start, block))
                start = None
        return gaps


async def of_entries(model: str, entries: Mapping[PeerId, SignedEntry], now_s: float) -> Snapshot:
    """What peers say of a model, by author, signatures checked already. What does not parse is left out, and so is a withdrawal.

    A record takes 0.1 ms to read, and there may be 2,000, so the event loop has a turn in between.
    """
    records: list[PeerRecord] = []
    for number, (peer, entry) in enumerate(sorted(entries.items())):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        if record := _read(peer, entry):
            records.append(record)
    return Snapshot(model, tuple(records), now_s)


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
