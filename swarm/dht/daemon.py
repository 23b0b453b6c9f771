"""Runs p2pd in its own process group.

Ctrl-C in a terminal reaches the whole foreground group, and would end p2pd before we have withdrawn.

hivemind offers no way to say so, hence its module sees `asyncio` through the view below. Our death still ends p2pd: it exits when
the connection that we hold to it closes.
"""

from __future__ import annotations

import asyncio
import functools
import types
from typing import Any

import hivemind.p2p.p2p_daemon


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
