"""A process that has imported the project and forks commands.

Imports cost six seconds of a core, a fork a few milliseconds. Before the fork nothing is started: no thread, loop or gRPC.
`tests/forked.py` is the other side: a socket of packets, whose number is our argument.
In: {"kind": "swarm" or "code", "arguments": […], "environment": {…}, "is_terminal": bool}, with the descriptors of stdin,
stdout and stderr, and perhaps of a network namespace. Out: {} once all is imported, {"pid": N} for each child, {"pid": N, "code": C} if it
has ended. At the end of the socket all children are killed.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import termios
import types
from collections.abc import Iterable
from typing import Any, NoReturn

MAX_REQUEST_BYTES = 1 << 17
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
IMPORTED = ("node.cli.app", "node.cli.host.node", "node.app", "swarm.dht.node", "swarm.client.model", "swarm.client.connection",
            "transformers.models.llama.modeling_llama", "node.gateway", "node.dashboard.pages.site", "node.runs.trainer")  # fmt: skip
"""All that commands import late, too: half a second of each that has a gateway."""

PRIVATE = ("typer._adapters",)
"""What a library imports late, if it is there: another version may have it elsewhere."""


class ForkServer:
    """Reads requests, forks, and tells of deaths."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._living: set[int] = set()
        self._wake, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._woken)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> tuple[dict[str, Any], list[int]] | None:
        """Returns in a new process, with its request and descriptors; in this one, None at the end of the socket."""
        self._say({})
        while True:
            ready, _, _ = select.select([self._channel, self._wake], [], [])
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._channel in ready:
                data, descriptors = _received(self._channel)
                if not data:
                    return kill_all(self._living)
                pid = os.fork()
                if not pid:
                    self._forget()
                    return json.loads(data), descriptors
                for descriptor in descriptors:
                    os.close(descriptor)
                self._living.add(pid)
                self._say({"pid": pid})

    def _say(self, message: dict[str, int]) -> None:
        self._channel.send(json.dumps(message).encode())

    def _reap(self) -> None:
        for pid in tuple(self._living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._living.remove(pid)
                self._say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _forget(self) -> None:
        """In a child: nothing of the server stays."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._channel.close()
        os.close(self._wake)
        os.close(self._woken)


def kill_all(pids: Iterable[int]) -> None:
    """Each with its session; the process itself, too, since a new one may have no session of its own yet."""
    for pid in pids:
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError):
                kill(pid, signal.SIGKILL)


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    data, extras, _, _ = channel.recvmsg(MAX_REQUEST_BYTES, socket.CMSG_SPACE(4 * descriptors.itemsize))
    for _, kind, content in extras:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content)
    return data, list(descriptors)


def become(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Runs the request in this new process: own session, streams and environment. Does not return."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # if the server is killed, it cannot kill us
    for number, descriptor in enumerate(descriptors):
        if number < 3:
            os.dup2(descriptor, number)
        elif ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns failed")
        os.close(descriptor)
    if request["is_terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or os.isatty(1))  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(request["environment"])
    for name in ("swarm.faults", "swarm.trace"):  # they read the environment when they are imported
        importlib.reload(sys.modules[name])
    tempfile.tempdir = None  # it remembers the one of the first look
    if request["kind"] == "swarm":
        sys.argv = ["swarm", *request["arguments"]]
        sys.exit(importlib.import_module("node.cli.app").main())
    code, *sys.argv[1:] = request["arguments"]
    sys.argv[0] = "-c"
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)
    sys.exit()


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    for name in PRIVATE:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    if (mdns := importlib.import_module("swarm.lan.mdns")).is_installed():
        mdns.load()
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread: a forked process would lack it"
    gc.freeze()
    if (forked := ForkServer(socket.socket(fileno=int(sys.argv[1]))).run()) is not None:
        become(*forked)
