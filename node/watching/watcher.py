"""Watches a swarm: the newest look, and what has changed.

A look costs a directory lookup for each model and a hello to each peer, so it is taken often only while a visitor is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

from node.watching.changes import Change, between, change
from node.watching.look import Look, seen
from node.watching.pulse import Pulse
from node.watching.visitors import Visitors
from protocols.errors import SwarmError
from protocols.records import PeerRecord
from swarm.clock import SYSTEM, Clock
from swarm.directory.snapshot import Snapshot
from swarm.rpc.pool import ChannelPool

log = logging.getLogger(__name__)

WATCHED_S = 0.7
"""Between two looks while a visitor watches; a directory's answer is up to 1 s old."""

UNWATCHED_S = 10.0
"""Between two looks without a visitor, so that the list of events has no hole."""

NAMES_S = 5.0
"""Between two questions for the names of models."""

AGAIN_S = 3.0
"""Between two tries to meet the swarm."""

SETTLE_S = 0.25
"""How long a look waits for hellos that are under way."""

MAX_MODELS = 8
"""Models that are watched, those of most peers: any peer can make up names. Directory lookups of one caller are bounded."""

MAX_CHANGES = 300
"""Lines of the list of events that are kept."""


class Directory(Protocol):
    """What is asked of `swarm.directory`."""

    async def models(self) -> dict[str, int]: ...

    async def snapshot(self, model: str) -> Snapshot: ...


class Source(Protocol):
    """A peer that has met the swarm: a full one or a thin one."""

    @property
    def directory(self) -> Directory: ...

    @property
    def pool(self) -> ChannelPool: ...

    async def ping(self, record: PeerRecord) -> float: ...


class Watcher:
    """One swarm. `run` watches until cancelled; all methods belong to one event loop."""

    def __init__(
        self,
        open_source: Callable[[], AbstractAsyncContextManager[Source]],
        names: Sequence[str] = (),
        clock: Clock = SYSTEM,
        more: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> None:
        """open_source: meets the swarm, and may raise SwarmError: it is tried again. names: of models to watch first.

        more: events from elsewhere, as (kind, text), since it was called last.
        """
        self._more = more
        self._open, self._own, self._clock = open_source, tuple(name.partition("@")[0] for name in names), clock
        self.source: Source | None = None
        """The peer that watches, while it does."""
        self.look = Look(at_s=clock.unix_s(), problem="the swarm has not been looked at yet")
        self.changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        """The newest last."""
        self.num_changes = 0
        """How many there have been since the start."""
        self.visitors = Visitors()
        self._names: tuple[str, ...] = ()
        self._named_s = -NAMES_S

    def tell(self, kind: str, text: str, peer: str = "") -> None:
        """Add a line to the list of events."""
        self._add([change(self._clock.unix_s(), kind, text, peer)])

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                async with self._open() as source:
                    self.source = source
                    await self._watch(source)
            except SwarmError as error:
                self._see_nothing(str(error))
            finally:
                self.source = None
            await asyncio.sleep(AGAIN_S)

    async def _watch(self, source: Source) -> None:
        pulse = Pulse(source.ping)
        try:
            while True:
                began_s = self._clock.now_s()
                await self._look(source, pulse)
                await self._pause(began_s)
        finally:
            await pulse.close()

    async def _look(self, source: Source, pulse: Pulse) -> None:
        if self._clock.now_s() - self._named_s >= NAMES_S or not self._names:
            listed = await source.directory.models()
            self._names = tuple(dict.fromkeys((*self._own, *listed)))[:MAX_MODELS]
            self._named_s = self._clock.now_s()
        snapshots = await asyncio.gather(*map(source.directory.snapshot, self._names))
        announced = {snapshot.model: snapshot.peers for snapshot in snapshots}
        pulse.begin({record.peer: record for records in announced.values() for record in records}.values())
        await pulse.settled(SETTLE_S)
        for kind, text in self._more():
            self.tell(kind, text)
        self._take(seen(self._clock.unix_s(), announced, pulse.silent, pulse.trips_ms))

    def _take(self, look: Look) -> None:
        before, self.look = self.look, look
        self._add(between(before, look) if not before.problem or before.records else [])

    def _see_nothing(self, why: str) -> None:
        if self.look.problem != why:
            self.tell("problem", why)
        self.look = Look(at_s=self.look.at_s, models=self.look.models, records=self.look.records, problem=why)

    def _add(self, changes: Sequence[Change]) -> None:
        self.changes.extend(changes)
        self.num_changes += len(changes)

    async def _pause(self, began_s: float) -> None:
        """Wait until the next look is due, which it is at once if a first visitor comes."""
        is_watched = self.visitors.here.is_set()
        every_s = WATCHED_S * max(1, len(self._names)) if is_watched else UNWATCHED_S
        left_s = every_s - (self._clock.now_s() - began_s)
        if is_watched:
            await asyncio.sleep(max(0.0, left_s))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, left_s)):
                await self.visitors.here.wait()
