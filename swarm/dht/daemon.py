"""Runs p2pd in its own process group.

Ctrl-C in a terminal reaches the whole foreground group, and would end p2pd before we have withdrawn.

hivemind offers no way to say so, hence its module sees `asyncio` through the view below. Our death still ends p2pd: it exits when
the connection that we hold to it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import types
from collections.abc import Coroutine
from typing import Any, TypeVar

import hivemind.p2p.p2p_daemon
from hivemind.p2p import P2P, P2PDaemonError

T = TypeVar("T")

STOP_S = 1.0
"""Time that p2pd has to end by itself."""


class _View(types.ModuleType):
    """asyncio, but for one function."""

    subprocess = types.SimpleNamespace(
        PIPE=asyncio.subprocess.PIPE,
        STDOUT=asyncio.subprocess.STDOUT,
        create_subprocess_exec=functools.partial(asyncio.create_subprocess_exec, process_group=0),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def install() -> None:
    """For this process; again is harmless."""
    hivemind.p2p.p2p_daemon.asyncio = _View("asyncio")


class _Awaited(dict[Any, "asyncio.Future[Any]"]):
    """Calls by their ids; one that was cancelled counts as unknown.

    hivemind gives each answer to its call. If that was cancelled a moment before, as after this process was stopped, its only reader of
    answers ends with an InvalidStateError: p2pd still runs, and we hear nothing of it any more.
    """

    def __contains__(self, call: object) -> bool:
        found = self.get(call)
        return found is not None and not found.done()


def keep_hearing(p2p: P2P) -> None:
    """Late answers do not end the reader of answers. Call it before the first call."""
    p2p._client.control._pending_calls = _Awaited()


async def unless_it_ends(p2p: P2P, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. P2PDaemonError if p2pd ends first: hivemind would wait for its word for ever. After any error p2pd has ended."""
    doing, over = asyncio.create_task(work), asyncio.create_task(ended(p2p))
    try:
        await asyncio.wait({doing, over}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise P2PDaemonError("it has ended as soon as it had started")
    except BaseException:
        await end(p2p)
        raise
    finally:
        for task in (doing, over):
            task.cancel()
        await asyncio.gather(doing, over, return_exceptions=True)


async def ended(p2p: P2P) -> None:
    """Returns when p2pd has ended, or is not heard any more."""
    exited = asyncio.ensure_future(p2p._child.wait())
    try:
        await asyncio.wait({exited, p2p._client.control._read_task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        exited.cancel()


async def end(p2p: P2P) -> None:
    """End p2pd and remove its sockets, within STOP_S."""
    child = p2p._child
    try:
        async with asyncio.timeout(STOP_S):
            await p2p.shutdown()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    await _forget(p2p)


async def _forget(p2p: P2P) -> None:
    """The tasks that spoke with it may have failed, since it is gone. Else asyncio would log that."""
    control = p2p._client.control
    await asyncio.gather(control._read_task, control._write_task, return_exceptions=True)
