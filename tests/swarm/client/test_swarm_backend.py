"""A model that is closed: first its sessions end, then its peer."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest
import torch

from protocols.ids import ModelId
from swarm.client.loop import background_loop
from swarm.client.swarm_backend import SwarmBackend
from swarm.inference.client.session import Session


class _SlowToEnd:
    """A session whose hops hear of its end late."""

    def __init__(self) -> None:
        self.is_told, self.has_begun = asyncio.Event(), threading.Event()

    async def close(self) -> None:
        self.has_begun.set()
        await self.is_told.wait()


@pytest.mark.parametrize("at_exit", [False, True], ids=["closed", "at-exit"])
@pytest.mark.parametrize("is_ended_before", [False, True], ids=["open", "ended-before"])
def test_the_peer_stays_until_all_hops_know_of_the_end(is_ended_before: bool, at_exit: bool) -> None:
    """Ctrl-C ends a session and closes the model at once: hops that were not told would keep the session for RESUME_S."""
    loop, released = background_loop(), threading.Event()
    session = _SlowToEnd()
    made, model = cast(Any, lambda _blocks: session), ModelId("llama", "1" * 64)
    backend = SwarmBackend(loop, released.set, made, model, torch.float32, cast(Any, None))

    async def begin() -> None:
        backend.started(None)
        if is_ended_before:
            backend.end(cast(Session, session))

    async def tell() -> bool:
        was_released = released.is_set()
        session.is_told.set()
        return was_released

    loop.run(begin())
    leaving = loop.submit(backend._end_at_exit()) if at_exit else None
    backend.close()
    assert session.has_begun.wait(60)
    loop.run(asyncio.sleep(0))  # what the end does at once has been done
    assert not loop.run(tell()), "the peer was let go before a session's hops knew of its end"
    assert released.wait(60)
    if leaving is not None:
        leaving.result(60)
