"""A thin model that is closed."""

from __future__ import annotations

import asyncio
from typing import Any, cast
from unittest.mock import Mock

import pytest

from swarm.inference.client.session import Session
from swarm.tasks import Tasks
from swarm.thin.generation import TokenSequence
from swarm.thin.model import ThinModel


class _SlowToEnd(Session):
    """A session whose hops hear of its end late."""

    def __init__(self) -> None:
        self.has_begun, self.is_told = asyncio.Event(), asyncio.Event()

    def __str__(self) -> str:
        return "a session"

    async def close(self, keep_s: int = 0) -> None:
        self.has_begun.set()
        await self.is_told.wait()


class _Model(ThinModel):
    def __init__(self, session: Session) -> None:
        self._sessions, self._ending, self._prefixes, self._router = [session], Tasks(), None, cast(Any, Mock())


@pytest.mark.parametrize("is_ended_before", [False, True], ids=["open", "end-was-cancelled"])
async def test_it_is_closed_when_all_hops_know_of_the_end(is_ended_before: bool) -> None:
    """Its peer ends next: hops that were not told would keep the session for RESUME_S."""
    session = _SlowToEnd()
    model = _Model(session)
    if is_ended_before:
        ending = asyncio.create_task(model.end(TokenSequence(session)))
        await session.has_begun.wait()
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
    closing = asyncio.create_task(model.close())
    await session.has_begun.wait()
    await asyncio.wait((closing,), timeout=0.05)
    assert not closing.done()
    session.is_told.set()
    async with asyncio.timeout(60):
        await closing
