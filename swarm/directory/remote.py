"""The directory as others tell it, by gRPC.

For peers that take no part in the DHT. The same interface as `directory.Directory`.

Several peers are asked at once and their answers merged. Each entry carries its author's signature and expiry, which are checked
here, so that a liar can only leave something out; what one leaves out, another tells, and what was told once is remembered
until it expires. Each look asks other peers than the last one, those that earlier answers named among them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from protocols.directory import MAX_ENTRIES, DirectoryReply, DirectoryRequest
from protocols.entries import SignedEntry
from protocols.errors import BadRequestError, DeadlineError, PeerUnreachableError, SwarmError, UnauthenticatedError
from protocols.ids import PeerId, short_peer
from protocols.services import DIRECTORY, Method
from swarm.dht.checking import newest_valid
from swarm.directory.snapshot import Snapshot, counted, of_entries
from swarm.directory.sources import Source, Sources

log = logging.getLogger(__name__)

ASK_S = 3.0
"""Wait for one peer's answer, dialling included."""

GRACE_S = 0.25
"""How much longer the others may take once one has told us something."""

MAX_CHECKED = 400
"""Signatures checked of one answer, in the order in which it tells them: 0.1 s."""


_DRAWN = 16


class Channel(Protocol):
    @property
    def address(self) -> str: ...

    async def unary(self, method: Method, request: bytes, timeout_s: float | None = None) -> bytes: ...


class Pool(Protocol):
    """What this needs of `swarm.rpc.pool.ChannelPool`."""

    async def channel(self, peer: PeerId, addresses: Sequence[str] = (), certificate: bytes = b"") -> Channel: ...


class RemoteDirectory:
    """One swarm's directory, as seen by a peer that only asks. `clock` gives Unix time."""

    def __init__(
        self,
        swarm: str,
        pool: Pool,
        given: Sequence[Source],
        clock: Callable[[], float] = time.time,
        may_be_seen: Callable[[PeerId], bool] = lambda peer: True,
        has_met: Callable[[PeerId], bool] = lambda peer: False,
        rng: random.Random | None = None,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """may_be_seen: is what this peer announces believed? has_met: has it answered us? Then what it announces goes first.

        max_entries: of one model that are remembered.
        """
        self._swarm, self._pool, self._clock = swarm, pool, clock
        self._may_be_seen, self._has_met, self._rng = may_be_seen, has_met, rng or random.Random()
        self._sources = Sources(given, self._rng)
        self._most = max_entries
        self._told: dict[str, dict[PeerId, SignedEntry]] = {}
        self._asking: set[asyncio.Task[int]] = set()

    @property
    def sources(self) -> tuple[PeerId, ...]:
        """Peers that would be asked, the next one first."""
        return tuple(source.peer for source in self._sources)

    async def snapshot(self, model: str) -> Snapshot:
        """All peers known to announce `model`. PeerUnreachableError if no peer answers and nothing is remembered."""
        await self._ask(model)
        snapshot = await of_entries(model, self._alive(model), self._clock())
        self._sources.learn(snapshot.peers)
        return snapshot

    async def models(self) -> dict[str, int]:
        """Names that are announced in this swarm, with the number of peers of each; in the order of `counted`."""
        await self._ask("")
        return await counted(self._alive(""), self._has_met)

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
        """Ask a few peers, then more, until one answers; late answers still count for the next look."""
        failures: list[SwarmError] = []
        for asked in self._sources.rounds():
            tasks = [asyncio.create_task(self._ask_one(source, model)) for source in asked]
            for task in tasks:
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            failed = await _first_answers(tasks)
            if len(failed) < len(tasks):
                return
            failures += failed
        if not self._alive(model):
            if failures and all(isinstance(error, BadRequestError) for error in failures):
                raise failures[0]  # all that we hear: it says what is wrong with our question
            reasons = "; ".join(map(str, failures[:3])) or "no peer is known"
            raise PeerUnreachableError(f"no peer of the swarm answers: {reasons}; check --peer, and that it runs")

    async def _ask_one(self, source: Source, model: str) -> int:
        """Entries that this peer told us and that are their authors'."""
        request = DirectoryRequest(swarm=self._swarm, model=model)
        try:
            async with asyncio.timeout(ASK_S):
                channel = await self._pool.channel(source.peer, source.addresses, source.certificate)
                reply = DirectoryReply.parse(await channel.unary(DIRECTORY, request.encode(), ASK_S))
        except (SwarmError, TimeoutError) as error:
            self._sources.failed(source)
            if isinstance(error, BadRequestError):
                raise
            raise _told_by(source, error) from None
        self._sources.answered(source, channel.address)
        return await self._merge(source, request, reply)

    async def _merge(self, source: Source, request: DirectoryRequest, reply: DirectoryReply) -> int:
        """Take what is new and signed. How many of the entries are good: those that we have already, and new ones."""
        now_s = self._clock()
        told = self._told.setdefault(request.model, {})
        fresh = [(peer, entry) for peer, entry in reply.entries if entry.expires_s > now_s and _is_newer(entry, told.get(peer))]
        num_forged = 0

        def check(peer: PeerId, entry: SignedEntry) -> bool:
            nonlocal num_forged
            try:
                entry.check(request.key(peer), peer, now_s)
            except UnauthenticatedError:
                num_forged += 1
                return False
            return True

        found = await newest_valid([fresh], check, lambda peer, entry: False, self._has_met, MAX_CHECKED)
        if num_forged:
            log.warning("%s tells %d entries that their authors have not signed", short_peer(source.peer), num_forged)
        for peer, entry in found.items():
            if _is_newer(entry, told.get(peer)):
                self._hold(told, peer, entry)
        return len(reply.entries) - len(fresh) + len(found)

    def _hold(self, told: dict[PeerId, SignedEntry], peer: PeerId, entry: SignedEntry) -> None:
        """Keep an entry; if all places are taken, a random one goes of a peer that we have not met."""
        if peer not in told and len(told) >= self._most:
            drawn = self._rng.sample(list(told), _DRAWN)
            del told[min(drawn, key=self._has_met)]
        told[peer] = entry


def _is_newer(entry: SignedEntry, held: SignedEntry | None) -> bool:
    return held is None or entry.expires_s > held.expires_s


def _told_by(source: Source, error: BaseException) -> SwarmError:
    if isinstance(error, SwarmError):
        return error
    return DeadlineError(f"peer {short_peer(source.peer)} did not answer within {ASK_S:.0f} s")


async def _first_answers(tasks: Sequence[asyncio.Task[int]]) -> list[SwarmError]:
    """Wait until all have answered, or GRACE_S after the first that told us something; the errors of those that failed so far."""
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
        if not isinstance(error, SwarmError):
            raise error
    return [error for error in errors if isinstance(error, SwarmError)]
