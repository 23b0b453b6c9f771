"""From what the directory says to whom to ask: which model a name means, and in which order its peers are worth asking. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from protocols.errors import ModelNotFoundError
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord, ServedSpan
from protocols.words import counted

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


def coverage(records: Iterable[PeerRecord], name: str | None, prefix: str = "") -> dict[ModelId, int]:
    """Blocks that are served of each model of that name (None = any) and beginning of a digest."""
    blocks: dict[ModelId, set[int]] = {}
    for record in records:
        for served in record.spans:
            if name in (None, served.model.name) and served.model.digest.startswith(prefix):
                ready = blocks.setdefault(served.model, set())
                if record.state == "serving":
                    ready.update(range(served.span.start, served.span.stop))
    return {model: len(ready) for model, ready in blocks.items()}


def choose_model(found: dict[ModelId, int], text: str) -> tuple[ModelId, str]:
    """The model that `text` means, of those found, and what to tell about others ("" = there are none).

    Of several digests under one name the one of which most blocks are served; a beginning of a digest must fit one only.
    """
    digests = {model.digest for model in found}
    if len(digests) > 1 and (split_name(text)[1] or (is_digest(text) and text not in {model.name for model in found})):
        raise ModelNotFoundError(
            f"{text!r} fits {counted(len(digests), 'model')}: {', '.join(map(_short, sorted(found, key=str)[:4]))}; give more of the digest"
        )
    model = min(found, key=lambda one: (-found[one], str(one)))
    others = sorted((one for one in found if one.digest != model.digest), key=lambda one: -found[one])
    if not others:
        return model, ""
    return model, (
        f"{model.name} is served with {len(digests)} different weights: we take "
        f"{_short(model)} ({counted(found[model], 'block')} served), not "
        + ", ".join(f"{_short(one)} ({found[one]})" for one in others[:3])
        + "; NAME@DIGEST chooses"
    )


def _short(model: ModelId) -> str:
    return f"{model.name}@{model.digest[:12]}"


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
