"""One host takes over from another.

The new host is opened and announced first; then the old one is drained and stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from node.serving.host import Host
from protocols.defaults import DRAIN_S

IDLE_CHECK_S = 0.1


class Announcing(Protocol):
    """Announces a node's hosts to the swarm (`node/placement/presence.py`)."""

    async def serve(self, host: Host) -> None: ...

    async def drop(self, host: Host) -> None: ...

    async def tell(self) -> None: ...


class Opening(Protocol):
    """Passes sessions to a host (`dispatcher.py`)."""

    def open(self, host: Host) -> None: ...

    def close(self, host: Host) -> None: ...


async def begin(host: Host, dispatcher: Opening, presence: Announcing) -> None:
    """Let new sessions reach the host, which has started, and announce it."""
    dispatcher.open(host)
    await presence.serve(host)


async def retire(
    host: Host, dispatcher: Opening, presence: Announcing, drain_s: float = DRAIN_S, hurry: asyncio.Event | None = None
) -> None:
    """Refuse new sessions, wait up to `drain_s` seconds or until `hurry` for open ones, and stop the host: the rest continue at replicas.

    The host is stopped and dropped also if `tell` fails.
    """
    host.drain()
    try:
        await presence.tell()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while host.num_sessions and not (hurry and hurry.is_set()):  # noqa: ASYNC110  (sessions end in many ways)
                    await asyncio.sleep(IDLE_CHECK_S)
    finally:
        await _end(host, dispatcher, presence)


async def _end(host: Host, dispatcher: Opening, presence: Announcing) -> None:
    try:
        await host.stop()
    finally:
        dispatcher.close(host)
        await presence.drop(host)
