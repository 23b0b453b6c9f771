"""The directory as others tell it, by gRPC: for peers that take no part in the DHT. The same face as `directory.Directory`.

Several peers are asked at once and their answers merged. Each entry carries its author's signature and expiry, which are checked
here, so that a liar can only leave something out; what one leaves out, another tells, and what was told once is remembered
until it expires. Each look asks other peers than the last one, those that earlier answers named among them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocols.directory import MAX_ENTRIES, DirectoryReply, DirectoryRequest
from protocols.entries import SignedEntry
from protocols.errors import BadRequestError, DeadlineError, PeerUnreachableError, SwarmError, UnauthenticatedError
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from protocols.services import DIRECTORY, Method
from swarm.directory.snapshot import Snapshot, counted, of_entries

log = logging.getLogger(__name__)

FANOUT = 3
"""Peers asked at once."""

ASK_S = 3.0
"""Wait for one peer's answer, dialling included."""

GRACE_S = 0.25
"""How much longer the others may take once one has told us something."""

MAX_SOURCES = 64
"""Peers that we keep as such, the given ones not counted."""


class Channel(Protocol):
    async def unary(self, method: Method, request: bytes, timeout_s: float | None = None) -> bytes: ...


class Pool(Protocol):
    """What this needs of `swarm.rpc.pool.ChannelPool`."""

    async def channel(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> Channel: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A peer to ask."""

    peer: PeerId
    addresses: tuple[str, ...]
    certificate: bytes = b""
    is_given: bool = False
    """Named by whoever started us: asked again even after it failed."""


class RemoteDirectory:
    """One swarm's directory, as seen by a peer that only asks. `clock` gives Unix time."""

    def __init__(
        self,
        swarm: str,
        pool: Pool,
        given: Sequence[Source],
        clock: Callable[[], float] = time.time,
        may_be_seen: Callable[[PeerId], bool] = lambda peer: True,
    ) -> None:
        """may_be_seen: is what this peer announces believed?"""
        self._swarm, self._pool, self._clock, self._may_be_seen = swarm, pool, clock, may_be_seen
        self._sources = {source.peer: source for source in given}
        """Who is asked first stands first."""
        self._told: dict[str, dict[PeerId, SignedEntry]] = {}
        self._asking: set[asyncio.Task[int]] = set()

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Peers that would be asked, the next one first."""
        return tuple(self._sources)

    async def snapshot(self, model: str) -> Snapshot:
        """Everybody known to announce `model`. PeerUnreachableError where nobody answers and nothing is remembered."""
        await self._ask(model)
        snapshot = of_entries(model, self._alive(model), self._clock())
        self._learn(snapshot.peers)
        return snapshot

    async def models(self) -> dict[str, int]:
        """Names that are announced in this swarm, with the number of peers of each; most peers first."""
        await self._ask("")
        return counted(self._alive(""))

    async def close(self) -> None:
        """Stop asking."""
        for task in tuple(self._asking):
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)

    def _alive(self, model: str) -> dict[PeerId, SignedEntry]:
        now_s = self._clock()
        told = self._told.get(model, {})
        for peer in [peer for peer, entry in told.items() if entry.expires_s <= now_s or not self._may_be_seen(peer)]:
            del told[peer]
        return told

    async def _ask(self, model: str) -> None:
        """Ask the next FANOUT peers, then the next, until one answers; late answers still count for the next look."""
        failures: list[str] = []
        waiting = list(self._sources.values())
        while waiting:
            asked, waiting = waiting[:FANOUT], waiting[FANOUT:]
            tasks = [asyncio.create_task(self._ask_one(source, model)) for source in asked]
            for task in tasks:
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            failed = await _first_answers(tasks)
            if len(failed) < len(tasks):
                return
            failures += map(str, failed)
        if not self._alive(model):
            reasons = "; ".join(failures[:3]) or "no peer is known"
            raise PeerUnreachableError(f"no peer of the swarm answers: {reasons}; check --peer, and that it runs")

    async def _ask_one(self, source: Source, model: str) -> int:
        """Entries that this peer told us and that are their authors'."""
        request = DirectoryRequest(swarm=self._swarm, model=model)
        try:
            async with asyncio.timeout(ASK_S):
                channel = await self._pool.channel(source.peer, source.addresses, source.certificate)
                reply = DirectoryReply.parse(await channel.unary(DIRECTORY, request.encode(), ASK_S))
        except (SwarmError, TimeoutError) as error:
            self._failed(source)
            if isinstance(error, BadRequestError):
                raise
            raise _told_by(source, error) from None
        self._move_back(source)
        return self._merge(source, request, reply)

    def _merge(self, source: Source, request: DirectoryRequest, reply: DirectoryReply) -> int:
        now_s, num_good = self._clock(), 0
        told = self._told.setdefault(request.model, {})
        for peer, entry in reply.entries:
            held = told.get(peer)
            if entry.expires_s <= now_s or (held and held.expires_s >= entry.expires_s):
                num_good += 1
                continue
            try:
                entry.check(request.key(peer), peer, now_s)
            except UnauthenticatedError as error:
                log.warning("%s tells what %s has not signed: %s", short_peer(source.peer), short_peer(peer), error)
                continue
            num_good += 1
            if peer in told or len(told) < MAX_ENTRIES:
                told[peer] = entry
        return num_good

    # --- whom to ask

    def _move_back(self, source: Source) -> None:
        """It answered: others are asked before it the next time."""
        if self._sources.pop(source.peer, None):
            self._sources[source.peer] = source

    def _failed(self, source: Source) -> None:
        """Drop a peer that we only heard of; one that was given is asked last."""
        if source.is_given:
            self._move_back(source)
        else:
            self._sources.pop(source.peer, None)

    def _learn(self, records: Sequence[PeerRecord]) -> None:
        """Put peers that we have not asked yet in front, and what is new about the others in place."""
        unasked: dict[PeerId, Source] = {}
        for record in records:
            known = self._sources.get(record.peer)
            if known is None and len(self._sources) + len(unasked) < MAX_SOURCES and record.addresses:
                unasked[record.peer] = _source_of(record)
            elif known is not None and not known.is_given:
                self._sources[record.peer] = _source_of(record)
        self._sources = {**unasked, **self._sources}


def _source_of(record: PeerRecord) -> Source:
    return Source(peer=record.peer, addresses=record.addresses, certificate=record.certificate)


def _told_by(source: Source, error: BaseException) -> SwarmError:
    if isinstance(error, SwarmError):
        return error
    return DeadlineError(f"peer {short_peer(source.peer)} did not answer within {ASK_S:.0f} s")


async def _first_answers(tasks: Sequence[asyncio.Task[int]]) -> list[SwarmError]:
    """Wait until all have answered, or GRACE_S after the first that told us something; the errors of those that failed so far.

    BadRequestError is raised where it is all that we hear: it says what is wrong with our question.
    """
    pending: set[asyncio.Task[int]] = set(tasks)
    ends_at: float | None = None
    loop = asyncio.get_running_loop()
    while pending:
        left_s = None if ends_at is None else max(0.0, ends_at - loop.time())
        done, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        if ends_at is None and any(task.exception() is None and task.result() for task in done):
            ends_at = loop.time() + GRACE_S
    errors = [error for task in tasks if task.done() and (error := task.exception()) is not None]
    for error in errors:
        if not isinstance(error, SwarmError) or (isinstance(error, BadRequestError) and len(errors) == len(tasks)):
            raise error
    return [error for error in errors if isinstance(error, SwarmError)]
