"""The lines that a node prints once per minute with work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NoReturn

from node.events import Event, OnEvent
from node.serving.worked import Worked
from protocols.words import counted

EVERY_S = 60.0
"""Seconds that one line sums up."""


def told(worked: Worked, num_peers: int) -> str:
    """`3 sessions, 1,204 tokens served, 2 peers`. Pure."""
    return (
        f"{counted(worked.num_sessions, 'session', is_grouped=True)}, "
        f"{counted(worked.num_tokens, 'token', is_grouped=True)} served, {counted(num_peers, 'peer', is_grouped=True)}"
    )


async def keep_telling(
    take: Callable[[], Worked],
    num_peers: Callable[[], int],
    on_event: OnEvent,
    sleep: Callable[[float], Awaitable[object]],
    trained: Callable[[], str] = lambda: "",
) -> NoReturn:
    """Until cancelled. take: what was served since the last time; trained: all that was given to a run, "" if nothing came to it.

    Nothing is said of a minute without work.
    """
    while True:
        await sleep(EVERY_S)
        worked = take()
        if worked.num_tokens:
            on_event(Event("work", told(worked, num_peers())))
        if text := trained():
            on_event(Event("contributed", text))
