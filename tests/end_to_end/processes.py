"""Real nodes for tests: `swarm node` processes that are killed, told to leave, and started again with the same data directory.

A zygote (`zygote.py`) forks them, so that a start takes about a second; their lines come through a pipe, their ends from the zygote.
Every wait has a deadline and ends at an event. Whatever happens to the tests, the zygote takes all nodes with it.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]

READY_S = 60.0
"""How long a node, or the zygote with its imports, may take on a busy machine."""


class Nursery:
    """Starts nodes. `with Nursery(folder) as nursery: node = nursery.start("anna", …)`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.zygote"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._started: queue.Queue[int] = queue.Queue()
        self._ends: dict[int, queue.Queue[int]] = {}
        self._reader = threading.Thread(target=self._read, name="zygote", daemon=True)
        self._reader.start()
        self._is_warm = False

    def _read(self) -> None:
        assert self._zygote.stdout is not None
        for line in self._zygote.stdout:
            message = json.loads(line)
            if "code" in message:
                self._ends[message["pid"]].put(message["code"])
            else:
                pid = message.get("pid", 0)
                self._ends[pid] = queue.Queue()
                self._started.put(pid)

    def start(self, name: str, arguments: list[str], environment: dict[str, str] | None = None) -> NodeProcess:
        """Start `swarm ARGUMENTS`; its lines are read as they are waited for."""
        if not self._is_warm:
            self._started.get(timeout=READY_S)
            self._is_warm = True
        pipe, log = self.folder / f"{name}.stdout", self.folder / f"{name}.stderr"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        lines = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        request = {
            "arguments": arguments,
            "environment": {"XDG_CACHE_HOME": str(self.folder / "cache"), **(environment or {})},
            "stdout": str(pipe),
            "stderr": str(log),
        }
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(request).encode() + b"\n")
        self._zygote.stdin.flush()
        pid = self._started.get(timeout=READY_S)
        return NodeProcess(name=name, pid=pid, log=log, _lines=lines, _end=self._ends[pid])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        try:
            self._zygote.wait(10)
        finally:
            self._zygote.kill()
            self._reader.join(10)


@dataclass(kw_only=True)
class NodeProcess:
    """One running `swarm node`, or one that has ended."""

    name: str
    pid: int
    log: Path
    said: dict[str, str] = field(default_factory=dict)
    """The newest text of each kind of line on its stdout."""
    code: int | None = None
    """Exit status once it is known; negative: the signal that ended it."""
    _lines: int
    _end: queue.Queue[int]
    _rest: bytes = b""

    def wait_for(self, kind: str, timeout_s: float = READY_S) -> str:
        """Read its lines up to one of this kind; AssertionError with its last words where it ends, or takes too long."""
        deadline = time.monotonic() + timeout_s
        while kind not in self.said:
            readable, _, _ = select.select([self._lines], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._lines, 65_536) if readable else b""
            if not data and (not readable or self.has_ended(0.2)):
                raise AssertionError(f"{self.name} did not say {kind!r}: {self.last_words()}")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.said.update(_kind_and_text(line.decode()) for line in lines)
        return self.said[kind]

    def hear(self) -> None:
        """Read what it has said since, without waiting."""
        while select.select([self._lines], [], [], 0)[0] and (data := os.read(self._lines, 65_536)):
            *lines, self._rest = (self._rest + data).split(b"\n")
            self.said.update(_kind_and_text(line.decode()) for line in lines)

    def last_words(self) -> str:
        return self.log.read_text()[-2_000:] or f"it said only {list(self.said)}"

    def has_ended(self, timeout_s: float = 0.0) -> bool:
        """Wait up to `timeout_s` for its end."""
        if self.code is None:
            try:
                self.code = self._end.get(timeout=timeout_s) if timeout_s else self._end.get_nowait()
            except queue.Empty:
                return False
        return True

    def end(self, number: signal.Signals, timeout_s: float = 10.0) -> int:
        """Send a signal to this process alone, wait for its end, and return the exit status."""
        os.kill(self.pid, number)
        assert self.has_ended(timeout_s), f"{self.name} did not end within {timeout_s} s of {number.name}: {self.last_words()}"
        assert self.code is not None
        return self.code

    def close(self) -> None:
        os.close(self._lines)


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
