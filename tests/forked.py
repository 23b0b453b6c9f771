"""Commands and scripts as forked processes, used like `subprocess`.

They are forked from a process with all imports done (`fork_server.py`).

`server.popen(["generate", …])` is `swarm generate …`, `server.popen([CODE, …], kind="code")` is `python -c CODE …`: a session of its own,
real streams, signals and exit codes. For what a process imports, or how it starts, use `subprocess`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

ROOT = Path(__file__).resolve().parents[1]
START_S = 120.0
"""How long the server may take for its imports on a busy machine."""

PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL


@dataclass(kw_only=True)
class Child:
    """One process; what `subprocess.Popen` offers, as far as tests use it."""

    pid: int
    stdin: IO[Any] | None = None
    stdout: IO[Any] | None = None
    stderr: IO[Any] | None = None
    returncode: int | None = None
    """Exit status once it is known; negative: the signal that ended it."""
    _end: queue.Queue[int] = field(repr=False)
    _arguments: Sequence[str] = ()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; TimeoutExpired if it runs longer than `timeout` seconds."""
        if self.returncode is None:
            try:
                self.returncode = self._end.get(timeout=timeout)
            except queue.Empty:
                raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0.0) from None
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(queue.Empty):
                self.returncode = self._end.get_nowait()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read both streams to their ends, and wait; TimeoutExpired leaves it running."""
        deadline = None if timeout is None else time.monotonic() + timeout
        readers = [_Reader(stream) for stream in (self.stdout, self.stderr)]
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError, ValueError):
                if input:
                    self.stdin.write(input)
                self.stdin.close()
        for reader in readers:
            reader.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(list(self._arguments), timeout or 0.0)
        self.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        out, err = (reader.content for reader in readers)
        return out, err


class _Reader(threading.Thread):
    """Reads a stream to its end; `content` is None without one."""

    def __init__(self, stream: IO[Any] | None) -> None:
        super().__init__(daemon=True)
        self._stream, self.content = stream, None
        self.start()

    def run(self) -> None:
        if self._stream is not None and not self._stream.closed:
            with self._stream:
                self.content = self._stream.read()


class ForkServer:
    """Starts processes; `with ForkServer() as server`. At its end all of them are killed."""

    def __init__(self, before: str = "") -> None:
        """before: code that runs before all imports."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRANSFORMERS_VERBOSITY": "error"}
        environment |= {"HIVEMIND_LOGLEVEL": "CRITICAL", "GRPC_VERBOSITY": "NONE"}  # as `node/logs.py` sets them before imports
        begin = f"{before}\nimport runpy; runpy.run_module('tests.fork_server', run_name='__main__', alter_sys=True)"
        command = [sys.executable, "-c", begin, str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._started: queue.Queue[tuple[int, queue.Queue[int]] | None] = queue.Queue()
        self._turn = threading.Lock()
        self._is_warm = False
        self._reader = threading.Thread(target=self._read, name="fork server", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        ends: dict[int, queue.Queue[int]] = {}
        with contextlib.suppress(ConnectionError):
            while data := self._channel.recv(4096):
                message = json.loads(data)
                if "code" in message:
                    ends.pop(message["pid"]).put(message["code"])
                else:
                    pid = message.get("pid", 0)
                    ends[pid] = queue.Queue()
                    self._started.put((pid, ends[pid]))
        for end in ends.values():
            end.put(-signal.SIGKILL)  # all children end with the server
        self._started.put(None)

    def _next(self) -> tuple[int, queue.Queue[int]]:
        """The next process that has started, and where its exit status will come; number 0 is the server itself."""
        started = self._started.get(timeout=START_S)
        if started is None:
            self._started.put(None)  # for the next caller
            raise AssertionError("the fork server has ended: its stderr, above, says why")
        return started

    def popen(
        self,
        arguments: Sequence[object],
        *,
        kind: str = "swarm",
        stdin: int | IO[Any] = DEVNULL,
        stdout: int | IO[Any] = PIPE,
        stderr: int | IO[Any] = PIPE,
        text: bool = True,
        environment: Mapping[str, str] | None = None,
        is_terminal: bool = False,
        network: int | None = None,
    ) -> Child:
        """Start one. environment: all of it; None = ours. is_terminal: stdin is its controlling one. network: a namespace's descriptor."""
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        for number, given in enumerate((stdin, stdout, stderr)):
            end, stream = _ends_of(given, number == 0, text)
            theirs.append(end)
            ours.append(stream)
        request = {"kind": kind, "arguments": list(map(str, arguments)), "is_terminal": is_terminal}
        request["environment"] = {"PYTHONPATH": str(ROOT), **(os.environ if environment is None else environment)}
        given_to = [*theirs, network] if network is not None else theirs
        with self._turn:
            if not self._is_warm:
                self._next()
                self._is_warm = True
            sys.audit("tests.forked", str(arguments[:2]))
            with contextlib.suppress(ConnectionError):
                socket.send_fds(self._channel, [json.dumps(request).encode()], given_to)
            pid, end_of = self._next()
        for end, given in zip(theirs, (stdin, stdout, stderr), strict=True):
            if given in (PIPE, DEVNULL):
                os.close(end)
        return Child(pid=pid, stdin=ours[0], stdout=ours[1], stderr=ours[2], _end=end_of, _arguments=list(map(str, arguments)))

    def run(self, arguments: Sequence[object], *, timeout: float = 120.0, **how: Any) -> subprocess.CompletedProcess[Any]:
        """Start one, and wait for its end; TimeoutExpired kills it."""
        child = self.popen(arguments, **how)
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException:
            child.kill()
            raise
        return subprocess.CompletedProcess(list(arguments), child.wait(), out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._channel.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._reader.join(60)
            self._channel.close()


def _ends_of(given: int | IO[Any], is_input: bool, text: bool) -> tuple[int, IO[Any] | None]:
    """(the descriptor of the child, our stream or None)"""
    if given == DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if given != PIPE:
        return given if isinstance(given, int) else given.fileno(), None
    read, write = os.pipe2(os.O_CLOEXEC)
    if is_input:
        return read, os.fdopen(write, "w" if text else "wb", buffering=1 if text else 0)
    return write, os.fdopen(read, "r" if text else "rb")
