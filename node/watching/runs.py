"""The training runs of a swarm, and what a trainer here wrote.

Losses, evaluations and samples do not travel between peers: they are shown of runs whose trainer writes its metrics on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from node.runs import overview
from node.runs.overview import RunOverview
from node.training.metrics import FILE
from node.training.report.history import History, read_history, thinned
from node.watching.look import Look
from node.watching.run_rows import RunRow, run_rows
from node.watching.watcher import Source
from protocols.errors import SwarmError
from protocols.ids import ModelId, PeerId
from protocols.masks import indices_of
from swarm.training.members import Members, Stage

MAX_POINTS = 400
"""Points of a curve in the browser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """One peer's part in a run now."""

    row: RunRow
    num_held: int
    """Micro-batches of the version under way that are in its sums."""

    num_micro_batches: int
    """Of a whole version; 0 = not known."""

    forward_ms: float
    backward_ms: float
    """Of one block and one micro-batch; 0 = not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """One run at one moment."""

    overview: RunOverview
    participants: tuple[Participant, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Numbers by version."""

    versions: tuple[float, ...]
    values: tuple[float, ...]


async def look_at_runs(source: Source, look: Look) -> list[RunView]:
    """All runs, by name; takes 3 s if there are some. SwarmError if the swarm does not answer."""
    found = await overview.look(source)
    return [RunView(overview=one, participants=await _participants(source, look, one)) for one in found]


async def _participants(source: Source, look: Look, run: RunOverview) -> tuple[Participant, ...]:
    try:
        stages = {
            stage.peer: stage for stage in await Members(ModelId(run.name, run.digest), source.directory, source.pool).look()
        }
    except SwarmError:
        stages = {}
    rows = run_rows(look.records.values(), run.digest, {peer: stage.status for peer, stage in stages.items()})
    return tuple(_participant(row, stages) for row in rows)


def _participant(row: RunRow, stages: Mapping[PeerId, Stage]) -> Participant:
    stage = stages.get(PeerId(row.peer))
    if stage is None:
        return Participant(row=row, num_held=0, num_micro_batches=0, forward_ms=0.0, backward_ms=0.0)
    held = {index for unit in stage.status.units for mask in unit.ledger.values() for index in indices_of(mask)}
    status = stage.status
    return Participant(
        row=row, num_held=len(held), num_micro_batches=status.num_micro_batches, forward_ms=status.forward_ms,
        backward_ms=status.backward_ms,
    )  # fmt: skip


def histories(folder: Path) -> list[History]:
    """Of each run that has written metrics below the folder, by name. Reads files; blocks."""
    found = list[History]()
    for path in sorted(folder.glob(f"*/{FILE}")):
        try:
            found.append(read_history(path.parent))
        except (SwarmError, OSError, ValueError, KeyError, TypeError):
            continue  # it has no version yet, or is being written
    return found


def curve(history: History, key: str) -> Curve:
    """One number of every version, thinned out."""
    versions = [float(row["version"]) for row in history.versions]
    return Curve(versions=tuple(thinned(versions, MAX_POINTS)), values=tuple(thinned(history.column(key), MAX_POINTS)))


def evaluated(history: History, key: str) -> Curve:
    """One number of every evaluation that has a loss, thinned out."""
    rows = [row for row in history.evaluations if row.get("loss") is not None and row.get(key) is not None]
    versions, values = ([float(row[name]) for row in rows] for name in ("evaluation", key))
    return Curve(versions=tuple(thinned(versions, MAX_POINTS)), values=tuple(thinned(values, MAX_POINTS)))
