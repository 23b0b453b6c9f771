"""Tries several ways side by side; the first success ends others.

Source: RFC 8305 (Happy Eyeballs), https://www.rfc-editor.org/rfc/rfc8305: the next address does not wait for the timeout of a silent one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from protocols.errors import SwarmError

T = TypeVar("T")

STAGGER_S = 0.25
"""After so long without an answer the next way is tried beside those before (RFC 8305, section 8)."""


async def race(
    ways: Sequence[Callable[[], Awaitable[T]]], discard: Callable[[T], Awaitable[None]], stagger_s: float = STAGGER_S
) -> T | list[SwarmError]:
    """What the first way that succeeds gives; why each of them failed if none does. Nothing runs on when this returns or is cancelled.

    discard: is given what another way gives at the same moment. An error that is no SwarmError is raised.
    """
    waiting, failures = list(ways), list[SwarmError]()
    running: set[asyncio.Future[T]] = set()
    try:
        while running or waiting:
            if waiting:
                running.add(asyncio.ensure_future(waiting.pop(0)()))
            done, _ = await asyncio.wait(running, timeout=stagger_s if waiting else None, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                running.discard(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, SwarmError):
                    raise error
                failures.append(error)
    finally:
        for task in running:
            task.cancel()
        for late in await asyncio.gather(*running, return_exceptions=True):
            if not isinstance(late, BaseException):
                await discard(late)
    return failures
