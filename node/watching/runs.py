"""The training runs of a swarm, and what a trainer here wrote."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node.runs import overview
from node.runs.overview import RunOverview
from node.training.metrics import FILE
from node.training.report.history import History, read_history, thinned
from node.watching import abouts
from node.watching.look import Look
from node.watching.run_rows import RunRow, run_rows
from node.watching.watcher import Source
from protocols.about import Trained
from protocols.errors import SwarmError
from protocols.ids import ModelId, PeerId
from protocols.masks import indices_of
from swarm.asking import answers
from swarm.training.members import Members, Stage

MAX_POINTS = 400
"""Points of a curve in the browser."""

MAX_ASKED = 64
"""Peers of one run that are asked what they have given."""


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

    given: Trained | None
    """What it says that it has given since its start; None = it does not say."""


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
    taking_part = await asyncio.gather(*(_participants(source, look, one) for one in found))  # made-up runs, too, take their time
    return [RunView(overview=one, participants=peers) for one, peers in zip(found, taking_part, strict=True)]


async def _participants(source: Source, look: Look, run: RunOverview) -> tuple[Participant, ...]:
    members = Members(ModelId(run.name, run.digest), source.directory, source.pool)
    try:
        stages = {stage.peer: stage for stage in await members.look()}
    except SwarmError:
        stages = {}
    rows = run_rows(look.records.values(), run.digest, {peer: stage.status for peer, stage in stages.items()})
    given = await _given(source, look, run, [PeerId(row.peer) for row in rows[:MAX_ASKED]])
    return tuple(_participant(row, stages.get(PeerId(row.peer)), given.get(PeerId(row.peer))) for row in rows)


async def _given(source: Source, look: Look, run: RunOverview, peers: Sequence[PeerId]) -> dict[PeerId, Trained]:
    """By peer, what it has given to the run; those that do not answer are left out."""

    async def ask(peer: PeerId) -> Trained | None:
        try:
            about = await abouts.ask(source.pool, look.records[peer])
        except SwarmError:
            return None
        return next((one for one in about.trained if one.run.digest == run.digest), None)

    asked = [peer for peer in peers if peer not in look.silent]
    return {peer: one async for peer, one in answers(asked, ask) if one is not None}


def _participant(row: RunRow, stage: Stage | None, given: Trained | None) -> Participant:
    if stage is None:
        return Participant(row=row, num_held=0, num_micro_batches=0, forward_ms=0.0, backward_ms=0.0, given=given)
    held = {index for unit in stage.status.units for mask in unit.ledger.values() for index in indices_of(mask)}
    status = stage.status
    return Participant(
        row=row, num_held=len(held), num_micro_batches=status.num_micro_batches, forward_ms=status.forward_ms,
        backward_ms=status.backward_ms, given=given,
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
