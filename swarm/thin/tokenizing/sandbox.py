"""A limited process for untrusted tokenizers and chat templates.

One request and one answer at a time, as lines of JSON; the process lives as long as its owner wants, so a token's text costs a hop
over a pipe (0.12 ms, measured on one core) and no start (0.1 s). `sandbox_main.py` is the program. If a limit ends it, the next
request starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocols import errors
from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm import awake, helper_process

MAX_ANSWER_BYTES = 256 << 20
PER_CPU = 5.0
"""Seconds on the clock that a request may take for each second of processor time that it may: machines are busy."""

LEAST_WAIT_S = 15.0
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # fmt: skip


class SandboxEndedError(ModelNotSupportedError):
    """A limit or a fault ended the process in the middle of a request."""

    def __init__(self, model: str, what: str) -> None:
        super().__init__(
            f"the tokenizer of {model} {what}: it is damaged or hostile, and was stopped; choose other weights with NAME@DIGEST, "
            "or a checkpoint of your own"
        )
        self.what = f"it {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLimits:
    """Seconds of processor time that a request may take, however short its text."""

    render_s: float = 2.0
    """Of a chat template; more for a long conversation."""

    decode_s: float = 3.0
    """Of token ids to text."""


class Sandbox:
    """Runs what belongs to one model. Blocking; from any thread, one after the other."""

    def __init__(self, model: str, with_transformers: bool = False, limits: CpuLimits | None = None) -> None:
        """Nothing is started yet. model: what errors call it. with_transformers: import it before limits hold."""
        self.model, self._with_transformers = model, with_transformers
        self.limits = limits or CpuLimits()
        """What callers pass on to `ask`."""
        self._lock = threading.Lock()
        self._opening: tuple[Mapping[str, Any], float] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ending: weakref.finalize[Any, Any] | None = None

    def start(self) -> None:
        """Start the process, and do not wait for it; without this call, the first request starts it."""
        with self._lock:
            self._start()

    def open(self, request: Mapping[str, Any], cpu_s: float) -> dict[str, Any]:
        """Ask something that every later process of this sandbox is to be asked first, too."""
        self._opening = None
        answer = self.ask(request, cpu_s)
        self._opening = request, cpu_s
        return answer

    def ask(self, request: Mapping[str, Any], cpu_s: float) -> dict[str, Any]:
        """The answer. cpu_s: processor time that it may take.

        Raises the error that the request met (CheckpointError, ModelNotSupportedError), and SandboxEndedError if a limit or a fault
        ended the process.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._drop()
                self._start()
                if self._opening is not None:
                    self._asked(*self._opening)
            return self._asked(request, cpu_s)

    async def ask_soon(self, request: Mapping[str, Any], cpu_s: float) -> dict[str, Any]:
        """As `ask`, on an event loop and without a thread, unless the process must be started first. No second request meanwhile."""
        process = self._process
        if process is None or process.poll() is not None:
            return await asyncio.to_thread(self.ask, request, cpu_s)
        assert self._lock.acquire(blocking=False), "this sandbox is being asked already"
        try:
            return self._checked(await self._answer_soon(process, {**request, "cpu_s": cpu_s}))
        finally:
            self._lock.release()

    async def _answer_soon(self, process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> bytes:
        cpu_s = request["cpu_s"]
        try:
            async with awake.timeout(max(LEAST_WAIT_S, PER_CPU * cpu_s)):
                await _write_soon(process, json.dumps(request).encode() + b"\n")
                return await _read_soon(process)
        except TimeoutError:
            self._drop()
            raise SandboxEndedError(self.model, f"needs more than {cpu_s:.0f} s") from None
        except (OSError, ValueError):
            self._drop()
            raise SandboxEndedError(self.model, _how_it_ended(process, cpu_s)) from None
        except BaseException:  # cancelled: its answer would be taken for that of the next request
            self._drop()
            raise

    def stop(self) -> None:
        """End the process in the middle of a request of another thread, which fails. The next request starts another process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        self.stop()
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._process = None
        if self._ending is not None:
            self._ending()

    def _start(self) -> None:
        environment = {**_ENVIRONMENT, **{name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ") if name in os.environ}}
        libraries = ("transformers",) if self._with_transformers else ()
        self._process = helper_process.start("swarm.thin.tokenizing.sandbox_main", *libraries, environment=environment)
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)
        self._ending = weakref.finalize(self, _kill, self._process)

    def _asked(self, request: Mapping[str, Any], cpu_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        ends_at_s = time.monotonic() + max(LEAST_WAIT_S, PER_CPU * cpu_s)
        try:
            _write(process, json.dumps({**request, "cpu_s": cpu_s}).encode() + b"\n", ends_at_s)
            line = _read(process, ends_at_s)
        except TimeoutError:
            self._drop()
            raise SandboxEndedError(self.model, f"needs more than {cpu_s:.0f} s") from None
        except (OSError, ValueError):  # the pipe broke, or the answer has no end
            self._drop()
            raise SandboxEndedError(self.model, _how_it_ended(process, cpu_s)) from None
        except BaseException:  # Ctrl-C: its answer would be taken for that of the next request
            self._drop()
            raise
        return self._checked(line)

    def _checked(self, line: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            self._drop()
            raise SandboxEndedError(self.model, "does not work")
        if isinstance(answer.get("fault"), str):  # not one of ours: the process is in an unknown state
            self._drop()
            raise SandboxEndedError(self.model, f"fails ({answer['fault'][:300]})")
        if isinstance(answer.get("code"), str):
            kind = errors.BY_CODE.get(answer["code"], ModelNotSupportedError)
            raise (kind if issubclass(kind, CheckpointError | ModelNotSupportedError) else ModelNotSupportedError)(
                str(answer.get("error"))[: errors.MAX_MESSAGE]
            )
        return answer


def _write(process: subprocess.Popen[bytes], data: bytes, ends_at_s: float) -> None:
    assert process.stdin
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(process.stdin.fileno(), left) :]
        except BlockingIOError:
            _wait(process.stdin.fileno(), select.POLLOUT, ends_at_s)


def _read(process: subprocess.Popen[bytes], ends_at_s: float) -> bytes:
    """One line; ValueError if the process ends before, or the line has more than MAX_ANSWER_BYTES."""
    assert process.stdout
    found = bytearray()
    while not found.endswith(b"\n"):
        _wait(process.stdout.fileno(), select.POLLIN, ends_at_s)
        data = os.read(process.stdout.fileno(), 1 << 20)
        found += data
        if not data or len(found) > MAX_ANSWER_BYTES:
            raise ValueError("the answer has no end")
    return bytes(found)


async def _write_soon(process: subprocess.Popen[bytes], data: bytes) -> None:
    assert process.stdin
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(process.stdin.fileno(), left) :]
        except BlockingIOError:
            await _ready(process.stdin.fileno(), is_writing=True)


async def _read_soon(process: subprocess.Popen[bytes]) -> bytes:
    """One line; ValueError as of `_read`."""
    assert process.stdout
    found = bytearray()
    while not found.endswith(b"\n"):
        await _ready(process.stdout.fileno(), is_writing=False)
        data = os.read(process.stdout.fileno(), 1 << 20)
        found += data
        if not data or len(found) > MAX_ANSWER_BYTES:
            raise ValueError("the answer has no end")
    return bytes(found)


async def _ready(number: int, is_writing: bool) -> None:
    """Until a pipe can be written, or read."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if is_writing else (loop.add_reader, loop.remove_reader)

    def notice() -> None:
        if not ready.done():
            ready.set_result(None)

    add(number, notice)
    try:
        await ready
    finally:
        remove(number)


def _wait(number: int, event: int, ends_at_s: float) -> None:
    poll = select.poll()
    poll.register(number, event)
    if not poll.poll(max(0.0, ends_at_s - time.monotonic()) * 1000):
        raise TimeoutError


def _how_it_ended(process: subprocess.Popen[bytes], cpu_s: float) -> str:
    if process.returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        return f"needs more than {cpu_s:.0f} s of processor time"
    return "needs more memory than it may have, or crashes"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and forget it; the code of one that ended by itself is kept."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.0)
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
