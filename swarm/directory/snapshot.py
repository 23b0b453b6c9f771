"""A frozen look at the peers of one model. Pure: it answers questions about gaps and digests without asking anybody."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from protocols.ids import Span
from protocols.records import PeerRecord, ServedSpan


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
        return tuple((peer, span) for peer, span in self.spans(digest) if peer.state == "serving")

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
