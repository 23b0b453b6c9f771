"""The grid of a model's blocks and nodes, to be drawn. Pure.

It holds plain numbers and texts, so that it can travel to a browser as JSON. Texts of peers are one line without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from node.watching.changes import label
from node.watching.look import Look
from node.watching.model_rows import ModelRows, PeerRow
from protocols.ids import PeerId, Span
from protocols.words import counted, one_line

LOADS = ("idle", "some load", "busy", "full")
"""Words for the levels of load."""

SOME_STEPS, BUSY_STEPS = 1, 4
"""Steps that wait at a node, from which it has some load, or is busy."""

SCARCE_TOKENS = 2_048
"""A node with less free KV memory, in tokens, is full: clients avoid it (`swarm/routing/path.py`)."""

MAX_ROWS = 400
"""Nodes that are drawn of one model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Consecutive blocks at one node."""

    start: int
    stop: int
    state: str
    """`serving`, `joining`, `draining`, `paused`, `silent` or `missing`."""

    level: int
    """An index of LOADS; 0 if it does not serve."""

    text: str
    """For a screen reader, and where the mouse rests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One node."""

    peer: str
    label: str
    state: str
    trip: str
    """Round trip from here, in words; empty = not known."""

    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Replicas:
    """Consecutive blocks with as many serving nodes each."""

    start: int
    stop: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One model."""

    name: str
    num_blocks: int
    rows: tuple[Row, ...]
    """By their first block."""

    gaps: tuple[Bar, ...]
    replicas: tuple[Replicas, ...]
    """Of all blocks, in their order: a model has as many runs as its nodes have edges, however many blocks someone claims."""

    num_hidden: int
    """Nodes beyond MAX_ROWS."""


def grid_of(rows: ModelRows, look: Look) -> Grid:
    """What is drawn of a model."""
    peers: dict[str, list[PeerRow]] = {}
    for row in rows.peers:
        peers.setdefault(row.peer, []).append(row)
    drawn = list(peers.items())[:MAX_ROWS]
    return Grid(
        name=one_line(rows.name), num_blocks=rows.num_blocks, rows=tuple(_row(peer, own, look) for peer, own in drawn),
        gaps=tuple(_gaps(rows.missing)), replicas=replicas_of(rows.replicas), num_hidden=len(peers) - len(drawn),
    )  # fmt: skip


def replicas_of(counts: Sequence[int]) -> tuple[Replicas, ...]:
    """Serving nodes of each block, as runs."""
    edges = [0, *(at for at in range(1, len(counts)) if counts[at] != counts[at - 1]), len(counts)]
    return tuple(Replicas(start, stop, counts[start]) for start, stop in pairwise(edges))


def level_of(row: PeerRow) -> int:
    """How busy a node is, as an index of LOADS."""
    if row.state != "serving":
        return 0
    if row.free_tokens < SCARCE_TOKENS:
        return 3
    return (row.queue >= SOME_STEPS) + (row.queue >= BUSY_STEPS)


def _row(peer: str, own: Sequence[PeerRow], look: Look) -> Row:
    ms = look.trips_ms.get(PeerId(peer))
    return Row(
        peer=peer, label=label(own[0].name, peer), state=one_line(own[0].state), trip="" if ms is None else f"{ms:.1f} ms",
        bars=tuple(map(_bar, own)),
    )  # fmt: skip


def _bar(row: PeerRow) -> Bar:
    level = level_of(row)
    words = [f"blocks {row.start}:{row.stop}{' with embedding and head' if row.ends else ''}", row.state]
    if row.state == "serving":
        step = [f"{row.step_ms:.1f} ms a step"] if row.step_ms else []
        words += [LOADS[level], f"{counted(row.queue, 'step')} waiting", *step, f"{row.free_tokens:,} free tokens"]
    words += [f"version {row.version}"] if row.version else []
    return Bar(start=row.start, stop=row.stop, state=row.state, level=level, text=one_line(", ".join(words)))


def _gaps(missing: Iterable[str]) -> Iterable[Bar]:
    for text in missing:
        span = Span.parse(text)
        yield Bar(start=span.start, stop=span.stop, state="missing", level=0, text=f"no node serves blocks {text}")
