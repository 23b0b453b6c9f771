"""Stages of the exact toy run in processes, and a trainer.

Gradients are integers at every version (`exact_stage.py`), so what stages hold must equal a single process bit for bit: parameters and
moments.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from protocols import compression
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.clock import Clock
from swarm.training.pipeline import Drawn
from tests.forked import PIPE, Child, ForkServer
from tests.node.training.exact_stage import NUM_BLOCKS, RUN, alone, drawn_index, spec_of
from tests.node.training.processes.stage_process import STATE
from tests.node.training.run_nodes import Folder, RunTrainer
from tests.node.training.toy_run import batch

CODE = "from tests.node.training.processes.stage_process import main; main()"
SPANS = ((0, 2), (2, 4))
NUM_VERSIONS = 3


def draw(version: int, index: int) -> Drawn:
    own = batch(drawn_index(version, index))
    return Drawn(ids=compression.pack(own.ids), labels=compression.pack(own.labels), positions=None, num_targets=own.num_targets)


@dataclass
class Stage:
    """One process."""

    child: Child
    peer: PeerId
    is_killed: bool = False

    def has_died(self, timeout_s: float = 0.0) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.child.wait(timeout_s) == -9 if timeout_s else self.child.poll() == -9
        return False


@dataclass
class Swarm:
    """The processes, and a trainer in this one."""

    server: ForkServer
    path: Path
    steps: int
    holds_by: Clock | None = None
    """As `RunTrainer` has it."""
    stages: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults, self.records = self.path / "faults", self.path / "records"
        self.faults.mkdir()
        self.records.mkdir()
        self.folder = Folder(self.records)
        self.trainer = RunTrainer(RUN, spec_of(self.steps), NUM_BLOCKS, self.folder, draw, self.holds_by)

    async def add(self, *spans: tuple[int, int]) -> list[Stage]:
        """Processes that take part, once they have caught up."""
        started = []
        for start, stop in spans:
            arguments = [CODE, self.records, start, stop, self.steps]
            with (self.path / "stderr").open("a") as errors:
                environment = {**os.environ, "SWARM_FAULTS": str(self.faults)}
                started.append(self.server.popen(arguments, kind="code", stdin=PIPE, stderr=errors, environment=environment))
        for child in started:
            assert child.stdout is not None
            peer = (await asyncio.to_thread(child.stdout.readline)).strip()
            assert peer, (self.path / "stderr").read_text()[-2_000:]
            self.stages.append(Stage(child, peer))
        return self.stages[-len(started) :]

    async def death(self) -> Stage:
        """The next stage that has died."""
        async with asyncio.timeout(120):
            while True:
                if dead := next((stage for stage in self.stages if stage.has_died()), None):
                    return dead
                await asyncio.sleep(0.05)

    @property
    def living(self) -> list[Stage]:
        return [stage for stage in self.stages if not stage.has_died()]

    async def states(self) -> dict[PeerId, dict[str, list[object]]]:
        """Of each that lives, by unit: version, bits, chain."""
        records: dict[PeerId, PeerRecord] = {one.peer: one for one in (await self.folder.snapshot(RUN.name)).peers}
        found = {}
        for stage in self.living:
            record = records[stage.peer]
            channel = await self.trainer.pool.channel(record.peer, record.addresses, record.certificate)
            found[stage.peer] = json.loads(await channel.unary(STATE, b"", 30.0))
        return found

    async def is_at(self, version: int) -> bool:
        return all(one[0] == version for state in (await self.states()).values() for one in state.values())

    async def check(self, version: int) -> None:
        """All that live come to have the state of a single process, and one chain for each unit."""
        expected = alone(version, spec_of(self.steps))
        async with asyncio.timeout(120):
            while not await self.is_at(version):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        chains: dict[str, set[object]] = {}
        for peer, state in (await self.states()).items():
            for unit, (_, found, chain) in state.items():
                assert found == expected[unit], f"{unit} at {peer} is not what a single process has"
                chains.setdefault(unit, set()).add(chain)
        assert chains.keys() == expected.keys() and all(len(one) == 1 for one in chains.values())


@contextlib.asynccontextmanager
async def swarm(server: ForkServer, path: Path, steps: int = NUM_VERSIONS, holds_by: Clock | None = None) -> AsyncIterator[Swarm]:
    found = Swarm(server, path, steps, holds_by)
    try:
        await found.trainer.start()
        await found.add(*SPANS, *SPANS)
        yield found
    finally:
        await found.trainer.close()
        for stage in found.stages:
            stage.child.kill()
