"""Suggested command lines work as they stand.

They have the right swarm, peer, files and data directory.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from protocols.words import counted
from swarm.suggestion import NodeCommand, cache_command

PEER = "/ip4/203.0.113.5/tcp/4000/p2p/12D3KooW" + "1" * 44


@pytest.fixture(autouse=True)
def usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (NodeCommand(), "swarm node tiny"),
        (NodeCommand(swarm="our attic"), "swarm node tiny --swarm 'our attic'"),
        (NodeCommand(peer=PEER, data_dir=Path("/d")), f"swarm node tiny --peer {PEER}"),
        (
            NodeCommand(swarm="attic", peer=PEER, data_dir=Path("/d")),  # its key is there
            f"swarm node tiny --swarm attic --peer {PEER} --data-dir /d",
        ),
        (NodeCommand(data_dir=Path("/a b")), "swarm node tiny --data-dir '/a b'"),
        (NodeCommand(directory="/"), "swarm node / --model-name tiny"),
    ],
)
def test_a_suggestion_names_what_is_not_the_default(command: NodeCommand, expected: str) -> None:
    assert command.text("tiny") == expected


def test_files_that_are_here_are_named_and_the_name_where_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    command = NodeCommand(directory=str(tmp_path / "tiny"))
    assert command.text("tiny", "--blocks", "0:2") == f"swarm node {tmp_path}/tiny --blocks 0:2"
    assert command.text("other") == f"swarm node {tmp_path}/tiny --model-name other"


def test_the_usual_data_directory_needs_no_flag(tmp_path: Path) -> None:
    usual = tmp_path / "murmuration"
    assert cache_command(usual, "prune") == "swarm cache prune" and NodeCommand(data_dir=usual).text("m") == "swarm node m"
    assert cache_command(Path("/d")) == "swarm cache --data-dir /d"


def test_what_a_peer_called_a_model_cannot_be_a_command() -> None:
    """Names come from records of untrusted peers."""
    assert shlex.split(NodeCommand().text("x; rm -rf ~")) == ["swarm", "node", "x; rm -rf ~"]


def test_one_is_not_many() -> None:
    assert [counted(number, "hop") for number in (0, 1, 2)] == ["0 hops", "1 hop", "2 hops"]
    assert counted(1_204, "token", is_grouped=True) == "1,204 tokens" and counted(1_204, "token") == "1204 tokens"
