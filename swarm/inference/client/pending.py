"""Steps in flight: each waits for its reply.

What the reply must look like is in `swarm/inference/requests.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from protocols.errors import SwarmError
from protocols.inference import Reply
from swarm.inference.requests import ReplyFormat


@dataclass(frozen=True, slots=True)
class Awaited:
    """A step in flight: its reply to come, with `counts[i]` tokens of sequence i."""

    reply: asyncio.Future[Reply]
    counts: tuple[int, ...]
    format: ReplyFormat
    num_tokens: int
    """That the step brings."""
    num_bytes: int
    """Of its payload, or of the reply's if that is larger."""

    def fits(self, reply: Reply) -> bool:
        """Has the reply the shape that was asked for?"""
        payload, expected = reply.payload, self.format
        is_alike = (reply.counts, payload.shape[1:], payload.dtype) == (self.counts, (expected.width,), expected.dtype)
        if reply.ids is None or not is_alike:
            return is_alike and not expected.has_ids
        shape = None if reply.totals is None else reply.totals.shape[1:]
        if shape != {0: None, 1: (), 2: (2,)}[expected.num_totals]:
            return False
        ids = memoryview(reply.ids.data).cast("i") if reply.ids.num_bytes else ()
        return expected.has_ids and all(0 <= token < expected.vocab_size for token in ids)

    def __str__(self) -> str:
        return f"counts {list(self.counts)[:8]} of {self.format.dtype} [{self.format.width}]"


class Pending:
    """The steps of one session whose replies have not come, and why none will come any more. Nothing here sends."""

    def __init__(self) -> None:
        self.steps: dict[int, Awaited] = {}
        """By number."""
        self.failure: SwarmError | None = None
        """Why the session can no longer be used; None while it can."""
        self._num_answered = 0
        self._change: asyncio.Future[None] | None = None
        """What `has_answered` waits for: more tokens are answered, or none will be."""

    def add(self, number: int, awaited: Awaited) -> None:
        """A step is about to be sent. Raises what `fail` was told: its reply would never come."""
        self.check()
        self.steps[number] = awaited

    def oldest(self) -> Awaited | None:
        """The step whose reply should come next."""
        return self.steps[min(self.steps)] if self.steps else None

    def awaiting(self, number: int) -> Awaited | None:
        """The step that a reply with this number is for; None: it has one, or was never sent."""
        awaited = self.steps.get(number)
        return None if awaited is None or awaited.reply.done() else awaited

    async def reply(self, number: int) -> Reply:
        """Wait for the reply to a step in `steps`, which is not in flight afterwards. Raises what `fail` was told."""
        awaited = self.steps[number]
        try:
            reply = await awaited.reply
        finally:
            self.steps.pop(number, None)
        self._num_answered += awaited.num_tokens
        self._tell()
        return reply

    async def has_answered(self, tokens: int) -> bool:
        """Waits for replies to so many tokens, in all steps so far; False if they will not come."""
        while self._num_answered < tokens and self.failure is None:
            self._change = self._change or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._change)
        return self._num_answered >= tokens

    def _tell(self) -> None:
        if self._change is not None:
            self._change.set_result(None)
            self._change = None

    def fail(self, error: SwarmError) -> None:
        """Raise `error`, or the one before it, in callers that wait for a reply."""
        self.failure = self.failure or error
        for awaited in self.steps.values():
            if not awaited.reply.done():
                awaited.reply.set_exception(self.failure)
                awaited.reply.exception()  # a waiting caller raises it; read once, so that asyncio does not warn about a cancelled caller
        self._tell()

    def check(self) -> None:
        """Raise the failure if there is one."""
        if self.failure is not None:
            raise self.failure
