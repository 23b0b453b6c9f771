"""A process that has imported all that a node needs, and forks nodes on demand: each runs the command line, as typed by a volunteer.

Imports cost seconds on a small machine, a fork a few milliseconds. Before the fork nothing is started: no thread, loop or gRPC.
stdin: a JSON line for each node, {"arguments": […], "environment": {…}, "stdout": PATH, "stderr": PATH}.
stdout: {} once all is imported, {"pid": N} for each node, {"pid": N, "code": C} when it has ended. At the end of stdin all nodes die.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import tempfile
from typing import Any, NoReturn


class Zygote:
    """Reads requests, forks, and tells of deaths."""

    def __init__(self) -> None:
        self._living: set[int] = set()
        self._wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> dict[str, Any] | None:
        """Returns in a new process, with its request; in this one, None at the end of stdin."""
        say({})
        while True:
            ready, _, _ = select.select([0, self._wake], [], [])
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if 0 in ready:
                line = sys.stdin.buffer.readline()
                if not line:
                    self._end()
                    return None
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    return dict(json.loads(line))
                self._living.add(pid)
                say({"pid": pid})

    def _reap(self) -> None:
        for pid in tuple(self._living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._living.remove(pid)
                say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})

    def _end(self) -> None:
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def say(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def become(request: dict[str, Any]) -> NoReturn:
    """Be the node that was asked for: a session of its own, its own streams and environment, then the command line."""
    os.setsid()
    for target, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        source = os.open(path, flags, 0o600)
        os.dup2(source, target)
        os.close(source)
    os.environ.update(request["environment"])
    for name in ("swarm.inference.faults", "swarm.inference.trace"):  # they read the environment when they are imported
        importlib.reload(sys.modules[name])
    tempfile.tempdir = None  # it remembers the one of the first look
    sys.argv = ["swarm", *request["arguments"]]
    sys.exit(importlib.import_module("node.cli.app").main())


if __name__ == "__main__":
    for name in ("node.cli.app", "node.cli.node", "node.app", "swarm.dht.node", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread: a forked node would lack it"
    gc.freeze()
    if (request := Zygote().run()) is not None:
        become(request)
