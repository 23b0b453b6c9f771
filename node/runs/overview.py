"""How far the runs are, by records and stages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from node.runs.newest_loss import newest_loss
from protocols.errors import SwarmError
from protocols.ids import ModelId
from protocols.masks import indices_of
from protocols.records import PeerRecord
from protocols.runs import RunSpec
from swarm.clock import SYSTEM, Clock
from swarm.directory.snapshot import Snapshot
from swarm.rpc.pool import ChannelPool
from swarm.training.members import Members, Stage
from swarm.weights.fetch import fetch_manifest

MEASURE_S = 3.0
"""Seconds between two looks at a run, for its speed."""

MAX_RUNS = 64
"""Runs that are looked at: any peer can make up names."""


class Directory(Protocol):
    """What is asked of `swarm.directory`."""

    async def models(self) -> dict[str, int]: ...

    async def snapshot(self, model: str) -> Snapshot: ...


class Reader(Protocol):
    """A peer that has met the swarm: a full one or a thin one."""

    @property
    def directory(self) -> Directory: ...

    @property
    def pool(self) -> ChannelPool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOverview:
    """One run, as its peers tell it."""

    name: str
    digest: str
    """Of its manifest."""
    version: int | None
    """The newest of any stage; None: no stage answers."""
    steps: int | None
    """Versions of the whole run; None, as `tokens_per_s`: no peer gave the manifest."""
    stages: int
    """That answer."""
    trainers: int
    keepers: int
    """Trainers and keepers of checkpoints that are announced."""
    served: int | None
    """The newest version that is served; None = not known."""
    tokens_per_s: float | None
    """Over MEASURE_S."""
    loss: float | None = None
    """Of the newest version, in nats per token, as a trainer tells it; None = none tells."""

    @property
    def share(self) -> float | None:
        """Of the run that is done, 0 to 1."""
        return None if self.version is None or not self.steps else min(1.0, self.version / self.steps)


async def look(peer: Reader, clock: Clock = SYSTEM) -> list[RunOverview]:
    """All runs of the swarm, by name; takes MEASURE_S if there are some."""
    names = list(await peer.directory.models())
    snapshots = await asyncio.gather(*(peer.directory.snapshot(name) for name in names))
    records: dict[ModelId, set[PeerRecord]] = {}
    for snapshot in snapshots:
        for record in snapshot.peers:
            for role in record.roles:
                records.setdefault(role.model, set()).add(record)
    runs = sorted(records, key=lambda run: (run.name, run.digest))[:MAX_RUNS]
    return list(await asyncio.gather(*(_look_at(peer, run, tuple(records[run]), clock) for run in runs)))


async def _look_at(peer: Reader, run: ModelId, records: Sequence[PeerRecord], clock: Clock) -> RunOverview:
    members = Members(run, peer.directory, peer.pool)
    spec = await _spec(
        peer, run, [record for record in records if any(role.kind == "stage" for role in record.roles_of(run.digest))]
    )
    before, began_s = await members.look(), clock.now_s()
    speed = None
    stages = before
    if spec is not None and before:
        await asyncio.sleep(MEASURE_S)
        stages, took_s = await members.look(), clock.now_s() - began_s
        speed = max(0.0, _micro_batches(stages) - _micro_batches(before)) * _tokens(spec) / took_s
    loss = await newest_loss(peer.pool, run, records)
    kinds = [kind for record in records for kind in {role.kind for role in record.roles_of(run.digest)}]
    return RunOverview(
        name=run.name, digest=run.digest, version=max(map(_version, stages), default=None),
        steps=None if spec is None else spec.batch.steps, stages=len(stages), trainers=kinds.count("trainer"),
        keepers=kinds.count("keeper"), served=max((max(stage.status.served, default=0) for stage in stages), default=None),
        tokens_per_s=speed, loss=loss,
    )  # fmt: skip


async def _spec(peer: Reader, run: ModelId, records: Sequence[PeerRecord]) -> RunSpec | None:
    try:
        return (await fetch_manifest(peer.pool, records, run)).run
    except SwarmError:
        return None


def _version(stage: Stage) -> int:
    return max((unit.version for unit in stage.units.values()), default=0)


def _tokens(spec: RunSpec) -> int:
    return spec.batch.batch_tokens // spec.num_micro_batches


def _micro_batches(stages: Sequence[Stage]) -> float:
    """Micro-batches since version 0 that are in some stage's sums, those of finished versions included."""
    version = max(map(_version, stages), default=0)
    size = max((stage.status.num_micro_batches for stage in stages), default=0)
    held: set[int] = set()
    for stage in stages:
        for unit in stage.units.values():
            if unit.version == version:
                held.update(*map(indices_of, unit.ledger.values()))
    return version * size + len(held)
