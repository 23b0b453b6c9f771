"""Clients that hang up: work for one ends with its connection.

Starlette's own streaming response cancels at every await of the cleaning up, too, so that a session's end would not reach the nodes. Here
a task is cancelled once, and what it does to end is awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

T = TypeVar("T")

SEND_S = 60.0
"""Longest wait for a client that reads nothing; then it is cut off."""


class HungUpError(Exception):
    """The client has closed its connection: the answer has no reader."""


async def while_listening(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; HungUpError, with `work` ended, as soon as the client hangs up. The request's body has been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HungUpError
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """The parts of a body as they come, until the client has all or hangs up; then `close` is awaited."""

    def __init__(
        self, parts: AsyncGenerator[bytes, None], headers: Mapping[str, str], close: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(None, headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._parts, self._close = parts, close
        self._since_s: float | None = None
        """When the part was given to the server that the client has not taken yet; None = it has taken all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, gone = asyncio.create_task(self._send(send)), asyncio.create_task(_gone(receive))
        try:
            while not sending.done() and not gone.done() and not self._is_stuck:
                await asyncio.wait((sending, gone), timeout=SEND_S / 4, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            elif not gone.done():
                log.info("a client read nothing for %.0f s and is cut off", SEND_S)
        finally:
            await _end(sending, gone)
            await self._close()

    @property
    def _is_stuck(self) -> bool:
        """The client has read nothing for too long: the server closes a connection whose response is not complete."""
        return self._since_s is not None and asyncio.get_running_loop().time() - self._since_s >= SEND_S

    async def _send(self, send: Send) -> None:
        now_s = asyncio.get_running_loop().time
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._parts) as parts:
            async for part in parts:
                self._since_s = now_s()  # a timer for each part would cost 25 us a token
                await send({"type": "http.response.body", "body": part, "more_body": True})
                self._since_s = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
