"""Real `swarm node` processes, for demo, bench and trace.

They are started, listened to and stopped on this machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

READY_S = 90.0
"""How long a node may take from its start to its first block; half of it is imports on a slow machine."""

LEAVE_S = 12.0
"""A node leaves within 5 s of SIGTERM; on a machine that is very busy everything takes longer."""

console = Console(highlight=False)


class VolunteerError(Exception):
    """Something did not go as it must; the text is one line that says what and where to look."""


@dataclass(kw_only=True)
class Node:
    """One volunteer's process. What it says on stdout (`kind: text` lines) and stderr goes to files in its own directory."""

    name: str
    blocks: str
    process: subprocess.Popen[bytes]
    directory: Path
    is_killed: bool = False
    said: dict[str, str] = field(default_factory=dict)
    """The first text of each kind of line (docs/commands.md); of several addresses the first is the best."""

    def wait_for(self, kind: str, tick: Callable[[], None] = lambda: None) -> str:
        """Read its lines until one of this kind; VolunteerError with its last words where it ends or takes too long."""
        deadline = time.monotonic() + READY_S
        while kind not in self.said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise VolunteerError(f"{self.name} did not get to say {kind!r}: {self.last_words()} (see {self.directory})")
            tick()
            time.sleep(0.05)
            for line in (self.directory / "stdout").read_text().splitlines():
                word, _, text = line.partition(":")
                self.said.setdefault(word, text.strip())
        return self.said[kind]

    def last_words(self) -> str:
        lines = (self.directory / "stderr").read_text().splitlines()
        return lines[-1] if lines else "it said nothing"


def start_node(
    name: str,
    blocks: str,
    model: Path | str | list[str],
    peers: list[str],
    folder: Path,
    *,
    host: str = "127.0.0.1",
    before: tuple[str, ...] = (),
) -> Node:
    """`swarm node` in a process and session of its own, on free ports of `host`, with a data directory that is empty.

    model: a checkpoint's directory, or a name that the swarm serves: then the weights come from peers; or words in place of a model
    (`--run RUN.toml`). before: words of a command that runs it there.
    """
    words = ["node", *(model if isinstance(model, list) else [str(model), "--dtype", "float32"]), "--name", name]
    if blocks:
        words += ["--blocks", blocks]
    words += ["--listen", f"{host}:0", "--data-dir", str(folder / name / "data")]
    for peer in peers:
        words += ["--peer", peer]
    return start_process(name, words, folder, blocks=blocks, before=before)


def start_process(name: str, words: list[str], folder: Path, *, blocks: str = "", before: tuple[str, ...] = ()) -> Node:
    """`swarm WORDS` in a process and session of its own; its lines go to files in `folder/NAME`."""
    directory = folder / name
    directory.mkdir()
    command = [*before, sys.executable, "-m", "node", *words]
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two cores for three nodes and a client
        process = subprocess.Popen(
            command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    return Node(name=name, blocks=blocks, process=process, directory=directory)


def stop(nodes: list[Node]) -> None:
    """SIGTERM, and what does not leave is killed."""
    running = [node for node in nodes if node.process.poll() is None]
    for node in running:
        node.process.send_signal(signal.SIGTERM)
    for node in running:
        try:
            node.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            node.process.kill()
            console.print(f"[yellow]{node.name} did not leave by itself and was killed[/]")
    for node in nodes:
        node.process.wait()
