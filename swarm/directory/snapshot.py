"""A frozen look at the peers of one model. Pure: it answers questions about gaps and digests without asking anybody."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from protocols import fields, frame
from protocols.entries import SignedEntry
from protocols.errors import SwarmError
from protocols.ids import PeerId, Span, short_peer
from protocols.records import MAX_SPANS, PeerRecord, ServedSpan

log = logging.getLogger(__name__)

_MAX_NAME = 200


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


def of_entries(model: str, entries: Mapping[PeerId, SignedEntry], now_s: float) -> Snapshot:
    """What peers say of a model, by author, signatures checked already. What does not parse is left out, and so is a withdrawal."""
    records = (_read(peer, entry) for peer, entry in sorted(entries.items()))
    return Snapshot(model, tuple(record for record in records if record), now_s)


def counted(entries: Mapping[PeerId, SignedEntry]) -> dict[str, int]:
    """Names of models in what peers say of them, with the number of peers of each; most peers first."""
    counts: dict[str, int] = {}
    for entry in entries.values():
        for name in set(_names(entry)):
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _read(peer: PeerId, entry: SignedEntry) -> PeerRecord | None:
    try:
        record = PeerRecord.parse(entry.payload) if entry.payload else None
    except SwarmError as error:
        log.debug("the record of peer %s does not parse: %s", short_peer(peer), error)
        return None
    return record if record and record.peer == peer else None


def _names(entry: SignedEntry) -> tuple[str, ...]:
    try:
        payload = entry.payload
        return fields.texts(frame.decode_kind(payload, "models").header, "models", MAX_SPANS, _MAX_NAME) if payload else ()
    except SwarmError:
        return ()
