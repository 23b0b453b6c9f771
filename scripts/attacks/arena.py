"""Six real nodes, four honest clients and at most one attacker.

Each is a process of its own; all end with the arena.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.models import TINY, checkpoint
from volunteers import Node, VolunteerError, console, start_node, stop

from attacks.watch import Watch
from swarm.dht.address import PeerAddress

ROOT = Path(__file__).resolve().parents[2]
SHAPE = replace(TINY, name="attacked-llama", blocks=6)
SPANS = ("0:2", "2:4", "4:6")
NUM_CLIENTS = 4
READY_S = 120.0


@dataclass(kw_only=True)
class Arena:
    """What is running. Times are Unix times."""

    folder: Path
    model: Path
    nodes: list[Node] = field(default_factory=list)
    clients: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def addresses(self) -> list[str]:
        return [node.said["multiaddr"] for node in self.nodes]

    def answers(self) -> list[dict[str, Any]]:
        """What all clients have asked so far; key "client" says who."""
        found = []
        for number in range(NUM_CLIENTS):
            file = self._file(number)
            lines = file.read_text().splitlines() if file.exists() else []
            found += [{"client": number, **json.loads(line)} for line in lines if line.endswith("}")]
        return found

    def _file(self, number: int) -> Path:
        return self.folder / f"client{number}.jsonl"

    def start(self) -> None:
        """Nodes, then clients; VolunteerError if one of them does not get ready."""
        with console.status("6 nodes and 4 clients start"):
            for number in range(2 * len(SPANS)):
                peers = self.addresses[:2]
                node = start_node(f"node{number}", SPANS[number % len(SPANS)], self.model, peers, self.folder)
                self.nodes.append(node)
                node.wait_for("ready")
            for number in range(NUM_CLIENTS):
                arguments = [str(self.model), str(self._file(number)), str(number), *self.addresses[:3]]
                self.clients.append(self._python(f"client{number}", "attacks.honest", arguments))
            deadline = time.monotonic() + READY_S
            while len({answer["client"] for answer in self.answers()}) < NUM_CLIENTS:
                if time.monotonic() > deadline or any(client.poll() is not None for client in self.clients):
                    raise VolunteerError(f"a client did not get an answer (see {self.folder})")
                time.sleep(0.2)

    def watch(self) -> Watch:
        return Watch([node.process.pid for node in self.nodes], [PeerAddress.parse(address) for address in self.addresses])

    @contextlib.contextmanager
    def attacker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """The attack, from when it has begun to the end of the block. VolunteerError if it gave up by itself, or reached no node."""
        arguments = [name, self.model.name, str(SHAPE.blocks), str(self.model), *self.addresses]
        process = self._python(f"attacker-{name}", "attacks.attacker", arguments)
        try:
            yield process
            if process.poll() is not None:
                raise VolunteerError(f"the attack {name!r} ended by itself (see {self.folder / f'attacker-{name}.stderr'})")
        finally:
            _end(process)
        if "\narrived " not in (self.folder / f"attacker-{name}.stdout").read_text():
            raise VolunteerError(f"nothing of the attack {name!r} arrived at any node (see {self.folder})")

    def _python(self, name: str, module: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}",
                       "XDG_DATA_HOME": str(self.folder / f"{name}.data")}  # fmt: skip
        with (self.folder / f"{name}.stderr").open("wb") as errors, (self.folder / f"{name}.stdout").open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True,
            )  # fmt: skip

    def close(self) -> None:
        for client in self.clients:
            _end(client)
        stop(self.nodes)


def _end(process: subprocess.Popen[bytes]) -> None:
    """By the end of its stdin; what does not end then is killed, its children too."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def arena(folder: Path) -> Iterator[Arena]:
    """Running, until the block ends."""
    place = Arena(folder=folder, model=checkpoint(SHAPE, folder))
    try:
        place.start()
        yield place
    finally:
        place.close()
