"""The first message of a stream, which says what it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from protocols.errors import BadRequestError
from swarm.rpc.stream import Stream

FIRST_MESSAGE_S = 10.0
"""Seconds until a stream's first message must have begun to arrive, and then be here: its caller has it ready when it dials."""

T = TypeVar("T")


async def first_message(stream: Stream, kind: type[T], parse: Callable[[bytes], object]) -> T:
    """BadRequestError if it does not come in time, or is of another kind; or what `parse` finds wrong with it."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            data = await stream.receive()
    except TimeoutError:
        raise BadRequestError(f"no message came on this stream for {FIRST_MESSAGE_S:.0f} s: it is closed") from None
    message = parse(data) if data is not None else None
    if not isinstance(message, kind):
        raise BadRequestError(f"the first message must be {kind.__name__}, got {type(message).__name__}")
    return message
