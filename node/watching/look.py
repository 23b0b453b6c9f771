"""What a watcher sees of a swarm at one moment. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from node.watching.model_rows import ModelRows, summarize
from protocols.hosted import Hosted
from protocols.ids import PeerId
from protocols.records import PeerRecord

SILENT = "silent"
"""The state of a peer that announced itself and does not answer now."""

MAX_WEIGHTS = 12
"""Weights, and lengths, of one name that are looked at: those of most answering peers. Any peer can make up as many as it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Every model, and who hosts it."""

    at_s: float
    """Unix time."""

    models: tuple[ModelRows, ...] = ()
    """Those that a name means here first, then other weights by the same names."""

    records: Mapping[PeerId, PeerRecord] = field(default_factory=dict)
    """As the peers describe themselves."""

    trips_ms: Mapping[PeerId, float] = field(default_factory=dict)
    """Round trips from the watcher, in milliseconds, to those that have answered."""

    silent: frozenset[PeerId] = frozenset()
    """Announced, and did not answer just now."""

    problem: str = ""
    """Why nothing, or nothing new, is seen; empty = all is well."""

    def peer(self, peer: str) -> PeerRecord | None:
        """One peer's record, by its PeerID."""
        return self.records.get(PeerId(peer))


@dataclass(frozen=True, slots=True)
class Link:
    """A measured way between two peers."""

    start: PeerId | None
    """None = from the watcher."""

    stop: PeerId
    ms: float
    """Round trip in milliseconds, as `start` has measured it."""


def seen(
    at_s: float, snapshots: Mapping[str, Iterable[PeerRecord]], silent: Collection[PeerId], trips_ms: Mapping[PeerId, float]
) -> Look:
    """A look, from what was announced under each name."""
    states = dict.fromkeys(silent, SILENT)
    models: list[ModelRows] = []
    records: dict[PeerId, PeerRecord] = {}
    for name, announced in snapshots.items():
        found = list(announced)
        records |= {record.peer: record for record in found}
        models += summarize(_bounded(found, name, states), name, states)
    models.sort(key=lambda rows: not rows.is_meant)
    return Look(
        at_s=at_s, models=tuple(models), records=records, silent=frozenset(silent) & records.keys(),
        trips_ms={peer: ms for peer, ms in trips_ms.items() if peer in records and peer not in states},
    )  # fmt: skip


def _bounded(records: Sequence[PeerRecord], name: str, silent: Collection[PeerId]) -> Sequence[PeerRecord]:
    """The records without blocks of all but MAX_WEIGHTS of the weights that are announced under a name."""
    counts = Counter[tuple[str, int]]()
    for record in records:
        for group in {_group(one) for one in record.blocks() if one.weights.model.name == name}:
            counts[group] += record.peer not in silent
    if len(counts) <= MAX_WEIGHTS:
        return records
    dropped = counts.keys() - {group for group, _ in counts.most_common(MAX_WEIGHTS)}
    return [
        replace(
            record, hosted=tuple(one for one in record.hosted if one.weights.model.name != name or _group(one) not in dropped)
        )
        for record in records
    ]


def _group(one: Hosted) -> tuple[str, int]:
    return one.weights.model.digest, one.num_blocks


def links(look: Look, peers: Collection[str]) -> list[Link]:
    """The ways from here to these peers and between them, the slowest first."""
    own = [Link(None, peer, ms) for peer, ms in look.trips_ms.items() if peer in peers]
    between = [
        Link(record.peer, other, ms)
        for record in look.records.values()
        if record.peer in peers and record.peer not in look.silent
        for other, ms in record.round_trips
        if other in peers and other not in look.silent
    ]
    return sorted([*own, *between], key=lambda link: (-link.ms, link.start or "", link.stop))


def only_here(look: Look, peer: str) -> list[str]:
    """What no other node serves, in words: blocks of models that cannot be asked without this peer."""
    found = []
    for rows in look.models:
        spans = [(row.start, row.stop) for row in rows.peers if row.peer == peer and row.state == "serving"]
        alone = sorted({block for start, stop in spans for block in range(start, stop) if rows.replicas[block] == 1})
        if alone:
            found.append(f"{len(alone)} of the {rows.num_blocks} blocks of {rows.name}")
    return found
