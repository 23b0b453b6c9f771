"""Addresses of running nodes are forgotten when a node ends.

Also if it is killed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.identity import from_seed
from swarm.meeting.running_nodes import nodes, told

PEER = from_seed(b"n" * 32).peer_id
ADDRESS = f"/ip4/203.0.113.5/tcp/4000/p2p/{PEER}"
NODE = """
import sys
from pathlib import Path
from swarm.meeting.running_nodes import told

with told(Path(sys.argv[1]), "attic", sys.argv[2], (sys.argv[3],)):
    print("runs", flush=True)
    sys.stdin.read()
"""


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", NODE, str(folder), PEER, ADDRESS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout and process.stdout.readline() == b"runs\n"
            yield process
        finally:
            process.kill()


def shown(folder: Path) -> list[str]:
    return [str(address) for address in nodes(folder, "attic")]


def test_a_node_is_told_while_it_runs_and_forgotten_when_it_leaves(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert shown(tmp_path) == shown(tmp_path) == [ADDRESS]
        assert nodes(tmp_path, "cellar") == []
        assert process.stdin
        process.stdin.close()
        process.wait()
        assert not list((tmp_path / "swarms").iterdir())


def test_a_killed_node_is_in_no_invitation_and_comes_back_with_its_next_start(tmp_path: Path) -> None:
    with running(tmp_path) as process:
        assert shown(tmp_path) == [ADDRESS]
        process.kill()  # SIGKILL
        process.wait()
        assert list((tmp_path / "swarms").iterdir()), "it could not tidy up"
        assert shown(tmp_path) == [] and not list((tmp_path / "swarms").iterdir())
        with running(tmp_path):
            assert shown(tmp_path) == [ADDRESS]


def test_a_node_whose_folder_cannot_be_written_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "swarms").write_text("a file")
    with told(tmp_path, "attic", PEER, (ADDRESS,)):
        assert shown(tmp_path) == []
