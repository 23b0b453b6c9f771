"""How a model is written by people, and in which order its peers are worth asking. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from protocols.errors import ModelNotFoundError
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord, ServedSpan

MIN_PREFIX = 6
"""Letters of a digest that may stand for it."""

_PREFIX = re.compile(r"[0-9a-f]{6,64}")


def split_name(text: str) -> tuple[str, str]:
    """(name, digest or its beginning) of `name`, `name@digest` or a digest alone; "" for what is not given."""
    name, at, digest = text.rpartition("@")
    if at:
        if not _PREFIX.fullmatch(digest):
            raise ModelNotFoundError(
                f"what follows the @ is a digest, or at least {MIN_PREFIX} letters of one, got {digest[:80]!r}"
            )
        return name, digest
    return text, ""


def is_digest(text: str) -> bool:
    """May this stand for a digest on its own?"""
    return bool(_PREFIX.fullmatch(text))


def ranked(
    records: Iterable[PeerRecord], digest: str, span: Span | None, ends: bool, me: PeerId, draw: Callable[[], float]
) -> list[PeerRecord]:
    """Peers that serve these weights, in the order in which to ask them.

    First those whose announced spans cover most of ours that nobody before them covers, so that a few sources have all of it; ties
    go to the larger upload cap (none known = large), then by lot, so that newcomers do not all ask the same ones.
    """
    spans = {
        record.peer: [served for served in record.spans if served.model.digest == digest]
        for record in records
        if record.peer != me and record.state != "draining"
    }
    lots = {record.peer: draw() for record in records}
    waiting = [record for record in records if spans.get(record.peer)]
    wanted = _wanted(span, ends)
    order, open_ = [], set(wanted)
    while waiting:
        best = max(
            waiting,
            key=lambda one: (len(open_ & _offers(spans[one.peer], wanted)), one.upload_bytes_s or 1 << 40, lots[one.peer]),
        )
        if not open_ & _offers(spans[best.peer], wanted) and open_ != wanted:
            open_ = set(wanted)  # all that is announced is covered once: from here on, cover it again
            continue
        order.append(best)
        waiting.remove(best)
        open_ -= _offers(spans[best.peer], wanted)
    return order


ENDS = -1
"""Stands for the ends among block numbers."""


def _wanted(span: Span | None, ends: bool) -> set[int]:
    return {*(range(span.start, span.stop) if span else ()), *((ENDS,) if ends else ())}


def _offers(spans: Sequence[ServedSpan], wanted: set[int]) -> set[int]:
    offered = {block for served in spans for block in range(served.span.start, served.span.stop)}
    if any(served.ends for served in spans):
        offered.add(ENDS)
    return offered & wanted
