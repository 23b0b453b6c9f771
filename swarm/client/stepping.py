"""How a thread waits for a step.

In the session itself, or on a loop that may cancel the step (streams).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from swarm.client.backend import StepRequest, StepSession

_way: ContextVar[Callable[[StepSession, StepRequest], Tensor] | None] = ContextVar("murmuration_way_of_waiting", default=None)


def step(session: StepSession, request: StepRequest) -> Tensor:
    """`session.step(request)`, in the way of waiting that this thread has chosen. Every step of a model goes through here."""
    way = _way.get()
    return session.step(request) if way is None else way(session, request)


@contextmanager
def waits(way: Callable[[StepSession, StepRequest], Tensor]) -> Iterator[None]:
    """Inside, in this thread or task, steps are waited for in this way."""
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)


class OnLoop:
    """A way of waiting: steps run on a loop, which may cancel the one under way. For one thread, whatever sessions it uses."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._step: Future[Tensor] | None = None
        self._is_left = False
        self.version: int | None = None
        """Of the session that made the latest step."""

    def __call__(self, session: StepSession, request: StepRequest) -> Tensor:
        self._step = step = asyncio.run_coroutine_threadsafe(_stepped(session, request), self._loop)
        if self._is_left:  # `leave` may have come before there was a step to cancel
            step.cancel()
        output = step.result()
        self.version = session.version
        return output

    def leave(self) -> None:
        """On the loop: cancel the step under way, and each that would follow."""
        self._is_left = True
        if self._step is not None:
            self._step.cancel()


async def _stepped(session: StepSession, request: StepRequest) -> Tensor:
    return await session.step_async(request)
