"""All replicas of a unit are killed: its buddy's copy goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocols.held import whole_versions
from swarm.clock import Clock
from swarm.training import recovery
from tests.forked import ForkServer
from tests.node.training.processes.exact_swarm import SPANS, Swarm, swarm

HELD, DEATH, STEPS = 3, 5, 8


async def held_by(run: Swarm, version: int) -> None:
    """Until the stages hold all units of this version together, and nothing is being copied."""
    members = run.trainer.members
    async with asyncio.timeout(120):
        while True:
            held = [one for stage in await members.look() for one in stage.status.held]
            if all(one.is_done for one in held) and [one.version for one in whole_versions(held)] == [version]:
                return
            await asyncio.sleep(0.05)


async def test_all_replicas_of_a_unit_are_killed_at_once_and_its_buddys_copy_goes_on(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GRACE_S", 1.0)
    now_s = [0.0]
    async with swarm(fork_server, tmp_path, STEPS, Clock(now_s=lambda: now_s[0])) as run:
        await run.trainer.train(HELD - 1)
        now_s[0] += 10
        await run.trainer.train(HELD)
        await held_by(run, HELD)
        await run.trainer.train(DEATH)
        for stage in run.stages[::2]:
            stage.child.kill()
        assert all(stage.has_died(60.0) for stage in run.stages[::2])
        await run.add(SPANS[0])
        await run.trainer.train(STEPS)
        await run.check(STEPS)
        assert len(run.living) == 3
    assert [one.version for one in run.trainer.finished] == [*range(1, DEATH + 1), *range(HELD + 1, STEPS + 1)]
    said = (tmp_path / "stderr").read_text()
    assert f"went back to version {HELD} from {DEATH}" in said
    assert f"fetched version {HELD} of 3 units from copies at others" in said
    assert run.trainer.restored[0].startswith(f"all stages go back from version {DEATH} to {HELD}: ")
