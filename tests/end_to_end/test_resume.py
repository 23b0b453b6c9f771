"""A run whose processes were all killed goes on from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from node.runs.trainer.local_trainer import train_locally
from node.training.checkpoint.folder import CheckpointFolder
from node.training.metrics import Row, VersionRow
from node.training.spec.reading import read
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.training_swarm import EVERY, STEPS, TrainingSwarm, write_short_run
from tests.forked import ForkServer
from tests.node.cli.test_commands import eventually


def undisturbed(run_file: Path, folder: Path) -> tuple[dict[int, float], dict[str, torch.Tensor]]:
    """Losses by version, and the last parameters, of one process that nothing happens to."""
    rows: list[Row] = []
    run = train_locally(read(run_file), folder / "data", folder / "alone", lambda event: None, [rows.append])
    parameters = {name: tensor for unit in run.units.states for name, tensor in run.units.stage.parameters(unit).items()}
    return {row.version: row.loss for row in rows if isinstance(row, VersionRow)}, parameters


def test_killed_whole_and_a_unit_lost_the_run_learns_as_if_undisturbed(tmp_path: Path, fork_server: ForkServer) -> None:
    run_file, faults = write_short_run(tmp_path / "run"), tmp_path / "faults"
    faults.mkdir()
    with ProcessPool(tmp_path, fork_server) as pool:
        swarm = TrainingSwarm(pool, run_file)

        checkpoints = CheckpointFolder(swarm.folder)

        # the node comes first; all are killed while a checkpoint is written
        swarm.node("anna", "0:3").wait_for("ready")
        armed = [faults / f"checkpoint_rename:step={version}" for version in range(2 * EVERY, STEPS, EVERY)]
        for fault in armed:  # whichever is the second one: if writing takes long, some are left out
            fault.touch()
        trainer = swarm.trainer("first", environment={"SWARM_FAULTS": str(faults)})
        trainer.wait_for("checkpoint")
        assert trainer.has_ended(120.0) and len(list(faults.iterdir())) == len(armed) - 1
        swarm.kill_all()
        newest, before = checkpoints.versions()[0], swarm.losses()
        assert max(before) > newest

        # the nodes come first, and go on from the checkpoint
        anna, bert = swarm.node("anna", "0:2"), swarm.node("bert", "2:3")
        anna.wait_for("ready")
        bert.wait_for("ready")
        assert anna.said["training"].startswith("version 0 of tiny")

        def is_between() -> bool:
            """Is the run one version after a checkpoint that is written?"""
            version = max(swarm.losses())
            return version > newest and version % EVERY == 1 and version - 1 in checkpoints.versions()

        with pool.pace.slow(0.03):  # a version in a second
            trainer = swarm.trainer("second")
            assert int(trainer.wait_for("version").partition(":")[0]) > newest, "it began anew"
            trainer.wait_for("ready")
            first = next(line for line in trainer.lines if line.startswith("checkpoint: "))
            assert first.startswith(f"checkpoint: version {newest} is in")

            # the only stage of a block dies, and a newcomer has the checkpoint's version only
            assert anna.wait_for("restored").startswith(f"restored to version {newest}")
            del anna.said["restored"]
            assert eventually(is_between)
            swarm.kill(bert)
        swarm.node("carl", "2:3")
        newest = int(trainer.wait_for("restoring").partition(" to ")[2].partition(":")[0])
        assert f"no stage has decoder/2:3 of a version after {newest}, " in trainer.said["restoring"]
        assert anna.wait_for("restored").startswith(f"went back to version {newest}")
        trainer.wait_for("trained")
        found = swarm.losses()
    expected, parameters = undisturbed(run_file, tmp_path)
    print("largest difference of a loss:", max(abs(found[version] / expected[version] - 1) for version in expected))
    assert found == pytest.approx(expected, rel=1e-5)
    assert before == pytest.approx({version: expected[version] for version in before}, rel=1e-5)
    assert checkpoints.versions()[0] == STEPS and len(checkpoints.versions()) == 3
    assert not list(swarm.folder.glob(".checkpoint*")), "what was half written is gone"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints.path(STEPS))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, parameters[name.removeprefix("model.layers.")], rtol=1e-4, atol=1e-5)
