"""Real nodes for tests: processes of `swarm node`.

They are killed, told to leave, and started again with the same data directory.

A fork server (`tests/forked.py`) makes them, so that a start takes about a second; their lines come through a pipe.
Every wait has a deadline and ends at an event. Whatever happens to the tests, the server takes all nodes with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.forked import ROOT as ROOT
from tests.forked import Child, ForkServer
from tests.paced import CODE, Pace

READY_S = 120.0
"""How long a node may take on a busy machine."""


class ProcessPool:
    """Starts nodes in a folder. `with ProcessPool(folder, server) as pool: node = pool.start("anna", …)`; all end with it."""

    def __init__(self, folder: Path, server: ForkServer) -> None:
        self.folder, self._server = folder, server
        self.pace = Pace(folder / "pace")
        """Of all its processes."""
        self._nodes: list[NodeProcess] = []

    def start(
        self, name: str, arguments: list[str], environment: dict[str, str] | None = None, network: int | None = None
    ) -> NodeProcess:
        """Start `swarm ARGUMENTS`; its lines are read as they are waited for. network: a namespace's descriptor."""
        log = self.folder / f"{name}.stderr"
        own = {**os.environ, "XDG_CACHE_HOME": str(self.folder / "cache"), **(environment or {})}
        with log.open("ab") as errors:
            words = [CODE, self.pace.file, *arguments]
            child = self._server.popen(words, kind="code", stderr=errors, text=False, environment=own, network=network)
        node = NodeProcess(name=name, log=log, _child=child)
        self._nodes.append(node)
        return node

    def node(self, *arguments: str) -> NodeProcess:
        """`swarm node ARGUMENTS`, ready. All nodes that are started so have one data directory."""
        command = ["node", *arguments, "--listen", "127.0.0.1:0", "--data-dir", str(self.folder / "data"), "--quiet"]
        node = self.start(f"node{len(self._nodes)}", command)
        node.wait_for("ready")
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self._nodes:
            if not node.has_ended():
                node.end(signal.SIGKILL)
            node.close()


@dataclass(kw_only=True)
class NodeProcess:
    """One running `swarm node`, or one that has ended."""

    name: str
    log: Path
    lines: list[str] = field(default_factory=list)
    """What was read of its stdout."""
    said: dict[str, str] = field(default_factory=dict)
    """The newest text of each kind of line."""
    _child: Child
    _rest: bytes = b""

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def code(self) -> int | None:
        """Exit status once it is known; negative: the signal that ended it."""
        return self._child.returncode

    def wait_for(self, kind: str, timeout_s: float = READY_S) -> str:
        """Read its lines up to one of this kind; AssertionError with its last words where it ends, or takes too long."""
        deadline = time.monotonic() + timeout_s
        while kind not in self.said:
            left_s = deadline - time.monotonic()
            if not self._read(max(0.0, left_s)) and (left_s <= 0 or self.has_ended(0.2)):
                raise AssertionError(f"{self.name} did not say {kind!r}: {self.last_words()}")
        return self.said[kind]

    def hear(self) -> None:
        """Read what it has said since, without waiting."""
        while self._read(0.0):
            pass

    def _read(self, timeout_s: float) -> bool:
        """Whether something came in that time."""
        assert self._child.stdout is not None
        stdout = self._child.stdout.fileno()
        data = os.read(stdout, 65_536) if select.select([stdout], [], [], timeout_s)[0] else b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        self.said.update(_kind_and_text(line.decode()) for line in lines)
        return bool(data)

    def last_words(self) -> str:
        return self.log.read_text()[-2_000:] or f"it said only {list(self.said)}"

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s` for its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout_s) if timeout_s else self._child.poll()
        return self.code is not None

    def send_signal(self, number: signal.Signals) -> None:
        """To this process alone; none if it has ended."""
        self._child.send_signal(number)

    def end(self, number: signal.Signals, timeout_s: float = 30.0) -> int:
        """Send a signal to this process alone, wait for its end, and return the exit status."""
        self.send_signal(number)
        assert self.has_ended(timeout_s), f"{self.name} did not end within {timeout_s} s of {number.name}: {self.last_words()}"
        assert self.code is not None
        return self.code

    def close(self) -> None:
        assert self._child.stdout is not None
        self._child.stdout.close()


def _kind_and_text(line: str) -> tuple[str, str]:
    kind, _, text = line.partition(": ")
    return kind, text


def members(session: int) -> list[int]:
    """Processes of a node's session: itself, and p2pd."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)
