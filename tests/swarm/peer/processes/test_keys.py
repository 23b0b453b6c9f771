"""Processes that create an identity file at once get one key."""

from __future__ import annotations

import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from protocols.identity import parse_private
from swarm.peer import keys

ROUNDS = 60


def start_as_client(folder: Path, together: Barrier, started: Queue[str]) -> None:
    """One client after the other, each under a file that is new, at the same moment as those of the other process."""
    for number in range(ROUNDS):
        together.wait(30)
        with keys.shared(folder / f"{number}.key") as mine:
            started.put(f"{number} {mine.identity.peer_id}")


def test_two_first_clients_of_a_new_identity_are_the_peer_that_is_in_the_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    together, started = context.Barrier(2), context.Queue()
    clients = [context.Process(target=start_as_client, args=(tmp_path, together, started)) for _ in range(2)]
    for client in clients:
        client.start()
    said = sorted(started.get(timeout=60) for _ in range(2 * ROUNDS))
    for client in clients:
        client.join(30)
        assert client.exitcode == 0
    kept = [f"{number} {parse_private((tmp_path / f'{number}.key').read_bytes()).peer_id}" for number in range(ROUNDS)]
    assert said == sorted(kept * 2)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_clients_share_an_identity_and_a_node_does_not(tmp_path: Path) -> None:
    file = tmp_path / "mine.key"
    with keys.shared(file) as one, keys.shared(file) as two:
        assert one.identity.peer_id == two.identity.peer_id == keys.peer_id(file)
        with pytest.raises(ConfigError, match="in use by another process"), keys.held(file, tmp_path):
            pass
    with keys.held(file, tmp_path) as node:
        assert node.identity.peer_id == keys.peer_id(file), "asked for while it is in use"
        with pytest.raises(ConfigError, match="in use by a node"), keys.shared(file):
            pass


def test_an_empty_file_becomes_an_identity_and_a_device_does_not(tmp_path: Path) -> None:
    file = tmp_path / "made-by-mktemp"
    file.touch()
    with keys.shared(file) as made:
        assert keys.peer_id(file) == made.identity.peer_id
    with pytest.raises(ConfigError, match="/dev/null: not an Ed25519"):
        keys.peer_id(Path("/dev/null"))
    assert Path("/dev/null").is_char_device()
