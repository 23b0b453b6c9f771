"""Asks many peers one thing, several at once.

Each answer is passed on as it comes. Also asks one peer if it is there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

from protocols.errors import SwarmError
from protocols.records import PeerRecord
from swarm import awake

Ping = Callable[[PeerRecord], Awaitable[float]]
"""Says hello to a peer: its round trip in milliseconds, without the time to connect. SwarmError if it does not answer."""

T = TypeVar("T")
R = TypeVar("R")

HELLO_S = 2.0
"""Longest wait for one peer's hello, in seconds, with the connection that it needs."""

AT_ONCE = 64
"""Peers that are asked at once; a silent one delays those behind it by HELLO_S."""


async def is_there(ping: Ping, record: PeerRecord, hello_s: float = HELLO_S) -> bool:
    """Does it answer a hello within `hello_s`?"""
    try:
        async with awake.timeout(hello_s):
            await ping(record)
    except (SwarmError, TimeoutError):
        return False
    return True


async def answers(
    asked: Iterable[T], ask: Callable[[T], Awaitable[R]], at_once: int = AT_ONCE
) -> AsyncGenerator[tuple[T, R], None]:
    """Each of `asked` with what `ask` returned, in the order of the answers; questions begin in the order of `asked`.

    `ask` raises nothing. Leaving early (`aclosing`) cancels the questions that are under way.
    """
    waiting = iter(asked)
    running: dict[asyncio.Future[R], T] = {}
    try:
        while True:
            for one in itertools.islice(waiting, at_once - len(running)):
                running[asyncio.ensure_future(ask(one))] = one
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()
        await asyncio.gather(*running, return_exceptions=True)
