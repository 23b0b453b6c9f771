"""A node keeps the checkpoints of a run itself."""

from __future__ import annotations

from pathlib import Path

from node.training.checkpoint.folder import CheckpointFolder
from tests.end_to_end.processes import ProcessPool
from tests.end_to_end.training_swarm import TrainingSwarm, write_short_run
from tests.forked import ForkServer

MANY = 2_000
"""Steps: more than there are before all are killed, however late this process is."""


def test_a_run_goes_on_from_the_checkpoint_of_a_node_though_its_trainer_has_none(tmp_path: Path, fork_server: ForkServer) -> None:
    """The node trains some of the units, and fetches the others."""
    keep = ["--keep", str(tmp_path / "kept")]
    with ProcessPool(tmp_path, fork_server) as pool:
        swarm = TrainingSwarm(pool, write_short_run(tmp_path / "run", training__steps=MANY))
        anna, bert = swarm.node("anna", "0:2", *keep), swarm.node("bert", "2:3")
        anna.wait_for("ready")
        bert.wait_for("ready")
        swarm.trainer("first", "--out", str(tmp_path / "lost"))
        assert "/kept/tiny/checkpoint-" in anna.wait_for("checkpoint")
        swarm.kill_all()
        newest = CheckpointFolder(tmp_path / "kept" / "tiny").versions()[0]
        assert newest >= 5

        anna, bert = swarm.node("anna", "0:2", *keep), swarm.node("bert", "2:3")
        assert anna.wait_for("restored") == f"version {newest} of 3 units from the checkpoint kept here"
        bert.wait_for("ready")
        assert int(swarm.trainer("second").wait_for("version").partition(":")[0]) > newest, "it began anew"
