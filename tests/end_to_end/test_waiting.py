"""`swarm chat` waits for the only node of some blocks.

On a terminal and in a script, while the node is dead, and when it comes again.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.processes import NodeProcess, ProcessPool
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.forked import PIPE, ForkServer
from tests.node.cli.screen import Screen

WAITING = "waiting for blocks 2:5, no live node hosts them"
WITHIN_S = 90.0


class Chat:
    """`swarm chat`, with a terminal of its own or with a terminal for nothing but its answers."""

    def __init__(self, server: ForkServer, model: Path, peer: str, data_dir: Path, is_script: bool) -> None:
        self.screen = Screen(100, 20)
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (20, 100))
        arguments = ("chat", str(model), "--peer", peer, "--no-lan", "--data-dir", str(data_dir), "--max-new-tokens", "8")
        data_dir.mkdir()
        self.errors = data_dir / "stderr"
        with self.errors.open("wb") as errors:
            self.process = server.popen(
                [*arguments, "--temperature", "0"],
                text=False,
                environment=os.environ | {"TERM": "xterm"},
                stdin=PIPE if is_script else theirs,
                stdout=theirs,
                stderr=errors if is_script else theirs,
            )
        os.close(theirs)

    def say(self, line: str) -> None:
        if self.process.stdin is None:
            os.write(self._ours, line.encode() + b"\n")
        else:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()

    def until(self, holds: Callable[[], bool]) -> None:
        """Read what it writes until something holds."""
        deadline = time.monotonic() + WITHIN_S
        while not holds():
            assert time.monotonic() < deadline, f"{self.screen.lines} {self.errors.read_text()[-500:]}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.screen.feed(os.read(self._ours, 65_536).decode(errors="replace"))

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.screen.lines)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)


@dataclass
class Pair:
    """Two nodes, each the only one of its blocks."""

    folder: Path
    pool: ProcessPool
    model: Path
    first: NodeProcess | None = None

    def start(self, blocks: str) -> NodeProcess:
        arguments = ["node", str(self.model), "--blocks", blocks, "--listen", "127.0.0.1:0", "--no-lan"]
        if self.first is not None:
            arguments += ["--peer", self.first.said["multiaddr"]]
        node = self.pool.start(f"node-{blocks[0]}", [*arguments, "--data-dir", str(self.folder / blocks[0])])
        node.wait_for("ready")
        return node


@pytest.fixture
def pair(tmp_path: Path, fork_server: ForkServer) -> Iterator[Pair]:
    model = make_checkpoint("llama", tmp_path / "tiny")
    add_byte_tokenizer(model)
    with ProcessPool(tmp_path, fork_server) as pool:
        pair = Pair(tmp_path, pool, model)
        pair.first = pair.start("0:2")
        yield pair


def test_who_waits_for_a_dead_node_is_told_which_blocks_are_missing_and_nothing_of_it_stays(
    pair: Pair, fork_server: ForkServer
) -> None:
    doomed = pair.start("2:5")
    assert pair.first is not None
    peer = pair.first.said["multiaddr"]
    person, script = chats = [
        Chat(fork_server, pair.model, peer, pair.folder / name, name == "script") for name in ("person", "script")
    ]
    try:
        for chat in chats:
            chat.say("One")
        person.until(lambda: person.shows("0 replaced") and person.screen.lines[-1] == ">")
        script.until(lambda: bool(script.screen.lines))
        first = script.screen.lines
        doomed.end(signal.SIGKILL)
        for chat in chats:
            chat.say("Two")
        person.until(lambda: person.shows(WAITING))
        assert person.screen.lines[-1].startswith(WAITING) and person.screen.lines[-1].endswith(" of 60)")
        script.until(lambda: WAITING in script.errors.read_text())
        assert script.screen.lines == first  # nothing of it is in what a script reads
        pair.start("2:5")
        person.until(lambda: person.shows("1 replaced") and person.screen.lines[-1] == ">")
        assert not person.shows("waiting for")
        script.until(lambda: len(script.screen.lines) > len(first))
        told = [line for line in script.errors.read_text().splitlines() if line.startswith(WAITING)]
        assert len(told) == 1 and "\x1b" not in told[0]
    finally:
        for chat in chats:
            chat.end()
