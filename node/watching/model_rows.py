"""The data of `swarm status`, from records. Pure.

What records say of each model, and of each peer's blocks of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from node.watching.run_rows import RunRow
from protocols.about import About
from protocols.hosted import Hosted
from protocols.ids import PeerId
from protocols.records import PeerRecord
from protocols.units import ENDS
from protocols.weights_id import Weights
from swarm.placement.choose import count_replicas, gaps_of
from swarm.routing import path
from swarm.weights.election import Tally, tallies

PAUSED = "paused"
"""The state of blocks that take no new sessions because an operator said so; their record says `draining`, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    """One peer's blocks of one model, and what it hosts beside them."""

    peer: str
    name: str
    state: str
    start: int
    stop: int
    ends: bool
    """Hosts embedding, norm and head as well."""
    version: int
    """Optimizer steps, of a model in training; 0 = the checkpoint's own weights."""
    units: tuple[str, ...]
    """All units of this table row, as `decoder/0:3`."""
    dtype: str
    quantization: str
    free_tokens: int
    queue: int
    step_ms: float
    reachable: bool | None
    addresses: tuple[str, ...]
    p2p_addresses: tuple[str, ...]
    software: str
    about: About | None = None
    """What it says of its machine and its work, if it was asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRows:
    """One set of weights: who hosts it, and what is missing."""

    name: str
    digest: str
    num_blocks: int
    is_complete: bool
    missing: tuple[str, ...]
    """Spans that no serving node hosts, as `3:6`."""
    least_replicas: int
    replicas: tuple[int, ...]
    """Serving nodes of each block."""
    is_thin_possible: bool
    """Can a client without files generate: is there a route with embedding and head at its first and last hop?"""
    is_meant: bool
    """Does the name mean these weights here? It means those of its last use; without one, those that most answering nodes serve."""
    peers: tuple[PeerRow, ...]
    run: tuple[RunRow, ...] = ()
    """Who trains it, if it is a run's model."""


def summarize(
    records: Iterable[PeerRecord], name: str, silent: Mapping[PeerId, str] = MappingProxyType({}), before: str | None = None
) -> list[ModelRows]:
    """Table rows of the model `name`, one group per digest and length, first those that the name stands for; peers by their blocks.

    silent: peers that did not answer just now, and what to say of them. Their records stay for a minute, but they serve nothing.
    before: the digest that the name meant at its last use here.
    """
    records = list(records)
    found = tallies(records, name, answering={record.peer for record in records} - set(silent))
    meant = next((one for one in found if one.model.digest == before), found[0] if found and before is None else None)
    records = [_silenced(record, silent[record.peer]) if record.peer in silent else record for record in records]
    groups: dict[tuple[str, int], list[tuple[PeerRecord, Hosted]]] = {}
    for record in records:
        for one in record.blocks():
            if one.weights.model.name == name:
                groups.setdefault((one.weights.model.digest, one.num_blocks), []).append((record, one))
    rows = [
        _model(name, digest, num_blocks, hosted, _is_meant(meant, digest, num_blocks))
        for (digest, num_blocks), hosted in sorted(groups.items())
    ]
    return sorted(rows, key=lambda one: not one.is_meant)


def _is_meant(meant: Tally | None, digest: str, num_blocks: int) -> bool:
    return meant is not None and digest == meant.model.digest and num_blocks == (meant.num_blocks or num_blocks)


def _silenced(record: PeerRecord, state: str) -> PeerRecord:
    return replace(record, state=state, hosted=tuple(replace(one, state="") for one in record.hosted))


def _model(name: str, digest: str, num_blocks: int, hosted: list[tuple[PeerRecord, Hosted]], is_meant: bool) -> ModelRows:
    serving = _best_version([(record, one) for record, one in hosted if record.state_of(one) == "serving"], num_blocks)
    replicas = count_replicas((one.span for _record, one in serving), num_blocks)
    missing = tuple(map(str, gaps_of(replicas)))
    rows = sorted((_peer(*pair) for pair in hosted), key=lambda row: (row.start, row.stop, row.peer))
    return ModelRows(
        name=name,
        digest=digest,
        num_blocks=num_blocks,
        is_complete=not missing,
        missing=missing,
        least_replicas=min(replicas),
        replicas=tuple(replicas),
        is_thin_possible=_is_thin_possible(serving),
        is_meant=is_meant,
        peers=tuple(rows),
    )


def _best_version(serving: Sequence[tuple[PeerRecord, Hosted]], num_blocks: int) -> list[tuple[PeerRecord, Hosted]]:
    """Those of the version that lacks the fewest blocks, of several the newest: a route is of one version."""
    groups: dict[Weights, list[tuple[PeerRecord, Hosted]]] = {}
    for record, one in serving:
        groups.setdefault(one.weights, []).append((record, one))

    def lacks(weights: Weights) -> int:
        replicas = count_replicas((one.span for _record, one in groups[weights]), num_blocks)
        return sum(map(len, gaps_of(replicas)))

    return groups[min(groups, key=lambda one: (lacks(one), -one.version))] if groups else []


def _is_thin_possible(serving: Sequence[tuple[PeerRecord, Hosted]]) -> bool:
    """Is there a route, in one number format, whose first and last hop host embedding and head?"""
    formats: dict[tuple[str, str], list[Hosted]] = {}
    for record, one in serving:
        if path.can_take_part(one.span, record.beside(one), one.num_blocks, ENDS):
            formats.setdefault(one.precision, []).append(one)
    return any(not path.missing({one.span for one in group}, group[0].num_blocks) for group in formats.values())


def _peer(record: PeerRecord, hosted: Hosted) -> PeerRow:
    beside = record.beside(hosted)
    return PeerRow(
        peer=record.peer,
        name=record.name,
        state=PAUSED if record.paused and record.state_of(hosted) == "draining" else record.state_of(hosted),
        start=hosted.span.start,
        stop=hosted.span.stop,
        ends=beside >= ENDS,
        version=hosted.weights.version,
        units=tuple(map(str, sorted({hosted.unit, *beside}))),
        dtype=hosted.dtype,
        quantization=hosted.quantization,
        free_tokens=hosted.load.free_tokens,
        queue=hosted.load.queue,
        step_ms=hosted.load.step_ms,
        reachable=record.reachable,
        addresses=record.addresses,
        p2p_addresses=record.p2p_addresses,
        software=record.software,
    )
