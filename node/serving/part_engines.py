"""Engines of all blocks that a node hosts, and of parts.

A route may ask for fewer blocks than a node hosts, since a client may run any part of the model. A part gets an engine of its own at
the first session that asks for it: over the same weights, in the same memory for keys and values, and on the same thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

from node.device.memory import Memory
from node.device.work import HeldSequences
from protocols.errors import InternalError, ModelNotSupportedError, OverloadedError, SpanNotServedError, SwarmError
from protocols.ids import Span

if TYPE_CHECKING:
    from node.engines.engine import Engine

log = logging.getLogger(__name__)

MAX_PARTS = 8
"""Limit of parts that have an engine at a time. An engine that no session uses is dropped for the next."""

MAX_PARTS_PER_CLIENT = 6
"""Limit of these parts that the sessions of one client use at a time: the rest is left for other clients."""

MakePart: TypeAlias = "Callable[[Span, int], Engine]"
"""(blocks, bytes for keys and values) -> an engine that passed its self-test. Takes as long as some forwards."""


@dataclass(slots=True)
class _Part:
    """An engine of some of the blocks, and how many sessions of each client use it."""

    engine: Engine
    users: Counter[Hashable] = field(default_factory=Counter)


class PartEngines:
    """`take` and `give_back` belong to one event loop; the rest to the thread that runs batches."""

    def __init__(
        self, whole: Engine, memory: Memory, make: MakePart | None = None, on_add: Callable[[], None] = lambda: None
    ) -> None:
        """memory: of the device. make: None = only all blocks together can be run here. on_add: there is one more engine to `warm_up`."""
        self.whole = whole
        self._memory, self._make, self._on_add = memory, make, on_add
        self._parts: dict[Span, _Part] = {}
        """Oldest use first. Replaced and never changed, since two threads read it."""
        self._making = asyncio.Lock()
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        """By client: one of its sessions at a time waits for `_making`."""

    @property
    def used_bytes(self) -> int:
        return self.whole.used_bytes + sum(part.engine.used_bytes for part in self._parts.values())

    def of(self, session: HeldSequences) -> Engine:
        """The engine that runs a session's blocks."""
        return session.engine or self.whole

    async def take(self, blocks: Span, client: Hashable) -> Engine:
        """The engine of these blocks, for one session of `client` until `give_back`. OverloadedError or SpanNotServedError says why not.

        One session of each client at a time waits for an engine to be made, and making engines takes at most half of the time.
        """
        lock = self._locks.setdefault(client, asyncio.Lock())
        async with lock:  # a session that is closed while it waits costs nothing
            self._check_share(blocks, client)
            while (part := self._parts.get(blocks)) is None:  # another `_add` may have dropped it before this task runs
                await self._making.acquire()
                await asyncio.shield(asyncio.create_task(self._add(blocks)))
        part.users[client] += 1
        self._parts = {**{other: held for other, held in self._parts.items() if other != blocks}, blocks: part}
        return part.engine

    def _check_share(self, blocks: Span, client: Hashable) -> None:
        used = [other for other, part in self._parts.items() if other != blocks and part.users[client]]
        if len(used) >= MAX_PARTS_PER_CLIENT:
            raise OverloadedError(
                f"you run {MAX_PARTS_PER_CLIENT} other parts of this peer's blocks, the limit of one client: close some, or use a replica"
            )

    async def _add(self, blocks: Span) -> None:
        """Make one engine, even if no session waits any more. It takes a core: the next begins after a pause of the same length."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            if blocks in self._parts:
                return
            part = _Part(await asyncio.to_thread(self._made, blocks))
            idle = self._idle(self._parts)
            self._parts = {**{other: held for other, held in self._parts.items() if other != idle}, blocks: part}
            self._on_add()
        finally:
            loop.call_later(loop.time() - began_s, self._making.release)

    def give_back(self, blocks: Span, client: Hashable) -> None:
        """The session uses the engine no more; its sequences are closed."""
        users = self._parts[blocks].users
        users[client] -= 1
        users += Counter()  # drops clients that do not use it

    def warm_up(self) -> bool:
        """Capture one graph of one engine; False: no engine has one left to capture."""
        for engine in (self.whole, *(part.engine for part in self._parts.values())):
            self._memory.lend(engine)  # a capture needs a sequence for a while
            if engine.warm_up():
                return True
        return False

    def _made(self, blocks: Span) -> Engine:
        if self._make is None:
            raise SpanNotServedError(
                f"this peer runs all of its blocks or none, the route wants {blocks} alone: try another peer"
            )
        self._idle(self._parts)
        try:
            return self._make(blocks, self._memory.limit_bytes)
        except ModelNotSupportedError as error:
            raise SpanNotServedError(f"blocks {blocks} cannot be run apart from the others here: {error}") from error
        except SwarmError:
            raise
        except Exception as error:
            log.exception("no engine could be made of blocks %s", blocks)
            raise InternalError(f"no engine of blocks {blocks}: {type(error).__name__}; the peer's log says more") from error

    def _idle(self, parts: dict[Span, _Part]) -> Span | None:
        """The part to drop before one more is made; None if there are fewer than MAX_PARTS. OverloadedError if sessions use all of them."""
        if len(parts) < MAX_PARTS:
            return None
        for blocks, part in parts.items():
            if not part.users:
                return blocks
        raise OverloadedError(f"this peer runs {MAX_PARTS} other parts of its blocks, its limit: try a replica, or later")
