"""A killed writer and a full disk leave the older checkpoint good."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from node.training.checkpoint.folder import CheckpointFolder
from tests.forked import ForkServer
from tests.node.training.checkpoint.runs import Run, make_run

WRITE = """
import sys
from pathlib import Path
from node.training.checkpoint.folder import CheckpointFolder
from tests.node.training.checkpoint.runs import opened_run
opened_run(Path(sys.argv[1])).write(CheckpointFolder(Path(sys.argv[2])), 20)
"""

FULL = """
import ctypes, json, os, sys
from pathlib import Path
NEWNS, NEWUSER = 0x00020000, 0x10000000
libc, uid = ctypes.CDLL(None, use_errno=True), os.getuid()
if libc.unshare(NEWNS) and libc.unshare(NEWNS | NEWUSER):
    sys.exit(77)
if uid:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
place, size = sys.argv[2:]
if libc.mount(None, b"/", None, 0x44000, None) or libc.mount(b"none", place.encode(), b"tmpfs", 0, f"size={size}".encode()):
    sys.exit(77)
from node.training.checkpoint.folder import CheckpointFolder
from protocols.errors import DiskFullError
from tests.node.training.checkpoint.runs import opened_run
run, folder = opened_run(Path(sys.argv[1])), CheckpointFolder(Path(place))
run.write(folder, 10)
error = ""
try:
    run.write(folder, 20)
except DiskFullError as full:
    error = str(full)
found = folder.newest(run.model.run, run.model.spec)
found.verify()
here = sorted(path.name for path in Path(place).iterdir())
digests = all(found.load(unit).digest == run.snapshot(unit, 10).digest for unit in run.model.units)
print(json.dumps({"error": error, "newest": found.version, "here": here, "same": digests}))
"""

MOMENTS = ("checkpoint_unit:step=1", "checkpoint_unit:step=3", "checkpoint_list:step=20", "checkpoint_rename:step=20")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("base"), num_blocks=2)


@pytest.mark.parametrize("moment", [*MOMENTS, "checkpoint_published:step=20"])
def test_kill_9_at_any_moment_leaves_a_good_checkpoint(moment: str, run: Run, tmp_path: Path, fork_server: ForkServer) -> None:
    folder = CheckpointFolder(tmp_path)
    run.write(folder, 10)
    environment = {**os.environ, "SWARM_FAULT": moment}
    child = fork_server.popen([WRITE, str(run.base.path), str(tmp_path)], kind="code", environment=environment)
    said, failure = child.communicate(timeout=60)
    assert child.wait(60) == -signal.SIGKILL, said + failure
    found = folder.newest(run.model.run, run.model.spec)
    expected = 10 if moment in MOMENTS else 20
    assert found is not None and found.version == expected
    found.verify()
    for unit in run.model.units:
        assert torch.equal(found.load(unit).data, run.snapshot(unit, expected).data)
    assert any(path.name.startswith(".checkpoint-20.") for path in tmp_path.iterdir()) == (expected == 10)
    run.write(folder, 30)
    left = {"checkpoint-10", "checkpoint-30"} | ({"checkpoint-20"} if expected == 20 else set())
    assert {path.name for path in tmp_path.iterdir()} == left, "the next start removes what the dead one has left"


def test_a_full_disk_leaves_the_older_checkpoint_good(run: Run, tmp_path: Path, fork_server: ForkServer) -> None:
    """On a disk of its own, which takes one checkpoint and not two."""
    one = sum(path.stat().st_size for path in run.write(CheckpointFolder(tmp_path / "size"), 10).rglob("*"))
    (tmp_path / "disk").mkdir()
    arguments = [FULL, str(run.base.path), str(tmp_path / "disk"), str(3 * one // 2)]
    child = fork_server.popen(arguments, kind="code")
    said, failure = child.communicate(timeout=60)
    if child.wait(60) == 77:
        pytest.skip("this user may mount no disk of its own")
    assert said, failure
    told = json.loads(said)
    assert told["error"].startswith("the disk became full while the checkpoint of version 20 was written at")
    assert "training goes on" in told["error"]
    assert told == {**told, "newest": 10, "here": ["checkpoint-10"], "same": True}
