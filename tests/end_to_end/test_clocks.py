"""Machines may have clocks that differ by 30 s.

Beyond that, the user of the wrong one is told. Processes are real.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import DEVNULL, Child, ForkServer

ANOTHER_CLOCK = """
import time, types
real, time.off_s = time.time, 0.0
time.time = lambda: real() + time.off_s
import grpc.aio._utils  # makes deadlines by Python's clock for gRPC's core, which looks at the machine's
grpc.aio._utils.time = types.SimpleNamespace(time=real)
"""
"""Runs before all imports, some of which keep `time.time`."""

COMMAND = """
import sys, time
time.off_s = float(sys.argv[1])
from node.cli.app import main
main(sys.argv[2:])
"""
PROMPT = "The quick brown fox"


class Shifted:
    """Commands on a machine whose clock is `off_s` ahead of the others'."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server

    def popen(self, off_s: float, folder: Path, *arguments: str, **how: Any) -> Child:
        own = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(folder)}
        return self._server.popen([COMMAND, off_s, *arguments], kind="code", environment=own, **how)

    def run(self, off_s: float, folder: Path, *arguments: str) -> tuple[int, str, str]:
        child = self.popen(off_s, folder, *arguments)
        try:
            text, remarks = child.communicate(timeout=120)
        finally:
            child.kill()
        return child.wait(), text, remarks


@pytest.fixture(scope="module")
def shifted() -> Iterator[Shifted]:
    with ForkServer(ANOTHER_CLOCK) as server:
        yield Shifted(server)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def peer(model: Path, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[str]:
    """A node of all blocks, whose clock is right."""
    with ProcessPool(tmp_path_factory.mktemp("node"), fork_server) as pool:
        yield pool.node(str(model)).said["multiaddr"]


@pytest.fixture(scope="module")
def answer(peer: str, shifted: Shifted, tmp_path_factory: pytest.TempPathFactory) -> str:
    code, text, remarks = shifted.run(0, tmp_path_factory.mktemp("right"), "generate", "tiny", PROMPT, "--thin", "--peer", peer)
    assert code == 0, remarks
    return text


@pytest.mark.parametrize("off_s", [-29, 29])
def test_half_a_minute_breaks_nothing_for_a_client(off_s: int, peer: str, answer: str, shifted: Shifted, tmp_path: Path) -> None:
    code, text, remarks = shifted.run(off_s, tmp_path, "generate", "tiny", PROMPT, "--thin", "--peer", peer)
    assert (code, text) == (0, answer) and "clock" not in remarks, remarks


@pytest.mark.parametrize("thin", [["--thin"], []], ids=["thin", "full"])
def test_a_client_two_minutes_ahead_is_told_of_its_clock_and_not_to_check_the_name(
    thin: list[str], peer: str, shifted: Shifted, tmp_path: Path
) -> None:
    code, text, remarks = shifted.run(120, tmp_path, "generate", "tiny", PROMPT, *thin, "--peer", peer, "--patience", "1")
    error = next(line for line in remarks.splitlines() if line.startswith("error: "))
    assert code == 7 and text == ""
    assert "this machine's clock is 120 s ahead of that of peer …" in error and peer[-6:] in error
    assert "timedatectl" in error and "Hub" not in error


@pytest.mark.parametrize("off_s", [-29, -120])
def test_a_node_that_is_behind_serves_or_is_told_before_it_is_ready(
    off_s: int, model: Path, peer: str, shifted: Shifted, tmp_path: Path
) -> None:
    name = f"off by {-off_s}"
    arguments = ["node", str(model), "--blocks", "0:5", "--peer", peer, "--listen", "127.0.0.1:0", "--name", name]
    node = shifted.popen(off_s, tmp_path, *arguments, stderr=DEVNULL)
    watchdog = threading.Timer(120, node.kill)
    watchdog.start()
    try:
        assert node.stdout
        lines = []
        for line in node.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        told = [line for line in lines if "clock is 120 s behind that of peer" in line]
        code, status, _ = shifted.run(0, tmp_path, "status", "tiny", "--json", "--peer", peer)
        names = [row["name"] for row in json.loads(status)["models"][0]["peers"]]
        assert code == 0 and (name in names, len(told)) == ((True, 0) if off_s == -29 else (False, 1)), (names, lines)
    finally:
        watchdog.cancel()
        node.kill()
        node.wait()
