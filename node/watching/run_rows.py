"""Who takes part in a training run, for `swarm status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from protocols.run_status import RunStatus
from protocols.words import counted, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One peer's part in a run."""

    peer: str
    name: str
    roles: tuple[str, ...]
    """As `stage decoder/0:3`, `trainer`."""
    state: str
    """Of a stage: training, paused, catching up or silent; "" for others."""
    version: int | None
    """The lowest of its units; None if it has none, or does not answer."""
    queue: int
    """Micro-batches in hand."""
    served: tuple[int, ...]
    """Versions that sessions may run on."""


def run_rows(records: Iterable[PeerRecord], digest: str, statuses: Mapping[PeerId, RunStatus]) -> tuple[RunRow, ...]:
    """The peers with a role in the run of that digest, stages first. statuses: of the stages that answered. Pure."""
    rows = [_row(record, digest, statuses.get(record.peer)) for record in records if record.roles_of(digest)]
    return tuple(sorted(rows, key=lambda row: (not row.state, row.roles, row.peer)))


def _row(record: PeerRecord, digest: str, status: RunStatus | None) -> RunRow:
    roles = record.roles_of(digest)
    is_stage = any(role.kind == "stage" for role in roles)
    versions = [unit.version for unit in status.units] if status is not None else []
    return RunRow(
        peer=record.peer,
        name=record.name,
        roles=tuple(map(str, roles)),
        state=_state(status) if is_stage else "",
        version=min(versions, default=None),
        queue=0 if status is None else status.queue,
        served=() if status is None else status.served,
    )


def _state(status: RunStatus | None) -> str:
    if status is None:
        return "silent"
    return "catching up" if status.is_catching_up else "paused" if status.is_paused else "training"


def lines(rows: Sequence[RunRow]) -> Iterator[str]:
    """A run in lines: how far it is, then a line for each peer."""
    versions = [row.version for row in rows if row.version is not None]
    num_stages = sum(bool(row.state) for row in rows)
    num_trainers = sum("trainer" in row.roles for row in rows)
    at = f"version {max(versions)}" if versions else "no stage answers"
    yield f"run: {at}, {counted(num_stages, 'stage')}, {counted(num_trainers, 'trainer')}"
    for row in rows:
        yield "  " + one_line(f"{', '.join(row.roles)}  {_label(row)}{_told(row)}")


def _label(row: RunRow) -> str:
    return f"{row.name} {short_peer(PeerId(row.peer))}".strip()


def _told(row: RunRow) -> str:
    if not row.state:
        return ""
    version = "" if row.version is None else f", version {row.version}, {counted(row.queue, 'micro-batch')} in hand"
    served = f", serves version {row.served[-1]}" if row.served else ""
    return f": {row.state}{version}{served}"
