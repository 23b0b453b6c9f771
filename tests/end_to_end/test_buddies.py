"""The only stage of a block is killed: its buddy goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from node.cli.flags.command_options import Hosting
from node.cli.host.node import read as read_config
from node.config import Serve
from node.runs.trainer.part import AfterStep
from node.runs.trainer.trainer import TrainConfig, run_trainer
from node.training.spec.reading import read
from protocols.held import whole_versions
from swarm.rpc.pool import ChannelPool
from swarm.training import recovery
from swarm.training.coordinator import Step
from swarm.training.members import Members
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.test_resume import undisturbed
from tests.end_to_end.training_swarm import TrainingSwarm, write_short_run
from tests.forked import ForkServer

STEPS, DEATH = 6, 3


async def held_by(members: Members) -> int:
    """The version that the stages hold together, once there is one."""
    async with asyncio.timeout(120):
        while True:
            held = [one for stage in await members.look() for one in stage.status.held]
            if found := whole_versions(held):
                return found[-1].version
            await asyncio.sleep(0.05)


async def test_the_only_stage_of_a_block_is_killed_and_a_newcomer_takes_its_buddys_copy(
    tmp_path: Path, fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "GRACE_S", 1.0)
    run_file = write_short_run(tmp_path / "run", training__steps=STEPS, checkpoint__every_steps=0)
    with ProcessPool(tmp_path, fork_server) as pool:
        swarm = TrainingSwarm(pool, run_file)
        anna, bert = swarm.node("anna", "0:2"), swarm.node("bert", "2:3")
        anna.wait_for("ready")
        bert.wait_for("ready")
        killed: list[int] = []

        def killing(members: Members, connections: ChannelPool) -> AfterStep:
            async def after(step: Step) -> None:
                if step.version == DEATH and not killed:
                    killed.append(await held_by(members))
                    swarm.kill(bert)
                    swarm.node("carl", "2:3")

            return after

        flags = Hosting(listen="127.0.0.1:0", peer=[anna.said["multiaddr"]], lan=False, data_dir=tmp_path / "trainer")
        file = read(run_file)
        config = TrainConfig(file=file, node=read_config([Serve(model=file.name)], flags), folder=swarm.folder, hold_every_s=0.0)
        await run_trainer(config, lambda event: None, also=[killing])
        carl = swarm.up[-1]
        carl.wait_for("ready")
        went_back = anna.wait_for("restored", 0.0)
        found = swarm.losses()
    expected, _ = undisturbed(run_file, tmp_path)
    print("held:", killed, went_back, carl.lines)
    assert went_back.startswith(f"went back to version {killed[0]} from {DEATH}")
    assert f"training: fetched version {killed[0]} of 2 units from copies at others" in carl.lines
    assert found == pytest.approx(expected, rel=1e-5)
