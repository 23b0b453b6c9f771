"""The data of `swarm status`, from records. Pure.

What records say of each model, and of each peer's blocks of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from protocols.ids import PeerId
from protocols.records import PeerRecord, ServedSpan
from swarm.placement.choose import count_replicas
from swarm.routing import path
from swarm.weights.election import Tally, tallies


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRow:
    """One peer's span of one model."""

    peer: str
    name: str
    state: str
    start: int
    stop: int
    ends: bool
    """Hosts embedding, norm and head as well."""
    dtype: str
    quantization: str
    free_tokens: int
    queue: int
    step_ms: float
    reachable: bool | None
    addresses: tuple[str, ...]
    p2p_addresses: tuple[str, ...]
    software: str


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
    """Can a client without files generate: is there a route with the ends at its first and last hop?"""
    is_meant: bool
    """Does the name mean these weights here? It means those of its last use; without one, those that most answering nodes serve."""
    peers: tuple[PeerRow, ...]


def summarize(
    records: Iterable[PeerRecord], name: str, silent: Mapping[PeerId, str] = MappingProxyType({}), before: str | None = None
) -> list[ModelRows]:
    """Rows of the model `name`, one group per digest and length, those that the name stands for first; peers in the order of their blocks.

    silent: who did not answer just now, and what to say of them. Their records live on for a minute, but they serve nothing.
    before: the digest that the name meant at its last use here.
    """
    records = list(records)
    found = tallies(records, name, answering={record.peer for record in records} - set(silent))
    meant = next((one for one in found if one.model.digest == before), found[0] if found and before is None else None)
    records = [_silenced(record, silent[record.peer]) if record.peer in silent else record for record in records]
    groups: dict[tuple[str, int], list[tuple[PeerRecord, ServedSpan]]] = {}
    for record in records:
        for served in record.spans:
            if served.model.name == name:
                groups.setdefault((served.model.digest, served.num_blocks), []).append((record, served))
    rows = [
        _model(name, digest, num_blocks, hosted, _is_meant(meant, digest, num_blocks))
        for (digest, num_blocks), hosted in sorted(groups.items())
    ]
    return sorted(rows, key=lambda one: not one.is_meant)


def _is_meant(meant: Tally | None, digest: str, num_blocks: int) -> bool:
    return meant is not None and digest == meant.model.digest and num_blocks == (meant.num_blocks or num_blocks)


def _silenced(record: PeerRecord, state: str) -> PeerRecord:
    return replace(record, state=state, spans=tuple(replace(served, state="") for served in record.spans))


def _model(name: str, digest: str, num_blocks: int, hosted: list[tuple[PeerRecord, ServedSpan]], is_meant: bool) -> ModelRows:
    replicas = count_replicas((served.span for record, served in hosted if record.state_of(served) == "serving"), num_blocks)
    missing = tuple(gaps(replicas))
    rows = sorted((_peer(*pair) for pair in hosted), key=lambda row: (row.start, row.stop, row.peer))
    return ModelRows(
        name=name,
        digest=digest,
        num_blocks=num_blocks,
        is_complete=not missing,
        missing=missing,
        least_replicas=min(replicas),
        replicas=tuple(replicas),
        is_thin_possible=_is_thin_possible([served for record, served in hosted if record.state_of(served) == "serving"]),
        is_meant=is_meant,
        peers=tuple(rows),
    )


def _is_thin_possible(serving: Sequence[ServedSpan]) -> bool:
    """Is there a route, in one number format, whose first and last hop host the ends?"""
    formats: dict[tuple[str, str], list[ServedSpan]] = {}
    for served in serving:
        if path.can_take_part(served.span, served.ends, served.num_blocks, thin=True):
            formats.setdefault((served.dtype, served.quantization), []).append(served)
    return any(not path.missing({one.span for one in group}, group[0].num_blocks) for group in formats.values())


def _peer(record: PeerRecord, served: ServedSpan) -> PeerRow:
    return PeerRow(
        peer=record.peer,
        name=record.name,
        state=record.state_of(served),
        start=served.span.start,
        stop=served.span.stop,
        ends=served.ends,
        dtype=served.dtype,
        quantization=served.quantization,
        free_tokens=record.free_tokens,
        queue=record.queue,
        step_ms=record.step_ms,
        reachable=record.reachable,
        addresses=record.addresses,
        p2p_addresses=record.p2p_addresses,
        software=record.software,
    )


def gaps(replicas: Sequence[int]) -> list[str]:
    """`start:stop` of every run of blocks without a replica."""
    edges = [block for block in range(len(replicas) + 1) if _is_gap(replicas, block) != _is_gap(replicas, block - 1)]
    return [f"{start}:{stop}" for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _is_gap(replicas: Sequence[int], block: int) -> bool:
    return 0 <= block < len(replicas) and replicas[block] == 0
