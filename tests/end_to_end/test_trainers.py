"""Two `swarm train` of one run, ended at will."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from node.runs.trainer.local_trainer import train_locally
from node.training.spec.reading import read
from scripts.run_files import write_run
from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.forked import ForkServer
from tests.scraped import page_where

STEPS = 16
SHARED = ("--listen", "127.0.0.1:0", "--metrics", "0", "--no-lan", "--data-dir")
STAGE = "murmuration_gradient_stage_seconds"


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["version"]: row["loss"] for row in rows if row.get("loss") is not None and "version" in row}


def test_the_coordinator_is_killed_the_next_one_leaves_and_the_run_is_the_undisturbed_one(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    run_file = write_run(tmp_path / "run", {"training.steps": STEPS})
    with ProcessPool(tmp_path, fork_server) as pool:
        nodes, peer = list[NodeProcess](), list[str]()
        for name, blocks in (("anna", "0:2"), ("ben", "2:4")):
            words = ["node", "--run", str(run_file), "--blocks", blocks, *peer, *SHARED, str(tmp_path / name)]
            nodes.append(pool.start(name, words))
            nodes[-1].wait_for("ready")
            peer = ["--peer", nodes[0].said["multiaddr"]]

        def trainer(name: str) -> NodeProcess:
            words = ["train", str(run_file), *peer, "--out", str(tmp_path / name), *SHARED, str(tmp_path / f"data-{name}")]
            return pool.start(name, words)

        with pool.pace.slow():
            both = [trainer("one"), trainer("two")]
            for process in both:
                process.wait_for("trainer")
            leader, other = sorted(both, key=lambda process: "works for" in process.said["trainer"])
            leader.wait_for("version")
            assert leader.end(signal.SIGKILL) == -9
            other.wait_for("version")
            stages = {"G1", "G2", "G3", "G6", "G8"}
            page_where(other.said["metrics"], lambda page: page.labels(f"{STAGE}_count", "stage") == stages)
            for node in nodes:
                page_where(node.said["metrics"], lambda page: page.labels(f"{STAGE}_count", "stage") == {"G4", "G5", "G7", "G9"})
            assert other.end(signal.SIGINT) == 0
        trainer("three").wait_for("trained")
        for node in nodes:
            assert node.end(signal.SIGINT) == 0
    train_locally(read(run_file), tmp_path / "data-alone", tmp_path / "alone", lambda event: None)
    alone, found = losses(tmp_path / "alone"), dict[int, float]()
    for name in ("one", "two", "three"):
        own = losses(tmp_path / name / "tiny")
        assert all(abs(own[version] - found.get(version, own[version])) < 1e-6 for version in own)
        found |= own
    assert len(found) >= STEPS - 2, "a version is known only to a trainer that was killed before it wrote it"
    differences = sorted(abs(found[version] / alone[version] - 1) for version in found)
    assert differences[-3] < 1e-4, "the loss of the two versions in which a trainer ended lacks what that one had computed"
    assert differences[-1] < 0.2
