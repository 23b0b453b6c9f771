"""One download: shards, or parts of them, from several peers.

Every piece is checked.

`Download.run` holds the shards' locks, keeps a few sources busy (`planner.py` says with what, `roster.py` which ones), and ends when all
is there. A source that lies is named and not asked again; one that dies, stalls or refuses gives its place to another, and may come
again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from protocols.errors import DeadlineError, DiskFullError, NoRouteError, OverloadedError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from swarm.checkpoints.layout import Wanted
from swarm.rpc.pool import ChannelPool
from swarm.weights.cache import ModelCache
from swarm.weights.intake import Intake
from swarm.weights.planner import Planner
from swarm.weights.reputation import Reputation
from swarm.weights.roster import Roster
from swarm.weights.source import LyingSourceError, SlowSourceError, Source
from swarm.weights.terms import Options, Progress, Report, Sources

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""Pause between two looks into the directory for sources."""

TICK_S = 0.5
"""So often it is judged whether a source gives its place to another."""

MARK_BYTES = 256 << 10
"""Less than this is no progress: a few tiny pieces now and then do not keep a download alive for ever."""

LOCKED_S = 0.5
"""Pause before a shard that another process is fetching is looked at again."""


class Download:
    """Fetches what is wanted into `cache`."""

    def __init__(
        self, cache: ModelCache, wanted: Iterable[Wanted], pool: ChannelPool, sources: Sources, options: Options
    ) -> None:
        self._cache, self._pool, self._look, self._options = cache, pool, sources, options
        self._wanted = tuple(wanted)
        self.report = Report()
        self._disk = ThreadPoolExecutor(2, thread_name_prefix="weights")
        self._active: dict[PeerId, asyncio.Task[None]] = {}
        reputation = options.reputation or Reputation(pool.is_connected)
        self._roster = Roster(reputation, options.max_sources, options.pause_s)
        self._giving_way: set[PeerId] = set()
        self._failure: SwarmError | None = None
        """The last one, for the error that ends us."""
        self._changed = asyncio.Event()
        self._progress_at_s, self._marked_bytes = 0.0, 0

    async def run(self) -> Report:
        """Returns when all of it is here. NoRouteError: no progress for `progress_timeout_s`; DiskFullError. Stored pieces stay stored."""
        started_s = time.monotonic()
        self.report.total_bytes = sum(one.num_bytes for one in self._wanted)
        try:
            await self._check_room([one for one in self._left() if one.is_whole])
            while left := self._left():
                if not await self._fetch_unlocked(left):
                    await asyncio.sleep(LOCKED_S)  # another process of this machine is fetching all that is left
        finally:
            self.report.seconds = time.monotonic() - started_s
            self._disk.shutdown(wait=False)
        return self.report

    def _left(self) -> list[Wanted]:
        return [one for one in self._wanted if not self._cache.shard(one.shard).has(one)]

    async def _check_room(self, wanted: Sequence[Wanted]) -> None:
        await self._on_disk(self._cache.check_room, wanted, self._options.disk_bytes)

    async def _on_disk(self, work: Callable[..., object], *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _fetch_unlocked(self, wanted: Sequence[Wanted]) -> bool:
        """Fetch those that no other process is fetching; False where there are none."""
        with contextlib.ExitStack() as locks:
            mine = []
            for one in wanted:
                lock = self._cache.shard(one.shard).locked(reserve=one.is_whole)
                if await self._on_disk(locks.enter_context, lock):
                    mine.append(one)
            await self._check_room([one for one in mine if not one.is_whole])  # only now is it known what is stored of them
            if mine:
                await self._fetch(mine)
        return bool(mine)

    async def _fetch(self, wanted: Sequence[Wanted]) -> None:
        self._planner = self._plan(wanted)
        self._progress_at_s, self._marked_bytes = time.monotonic(), self._here
        self._tell()
        looking = asyncio.create_task(self._keep_looking(), name=f"sources of {self._cache.model.name}")
        try:
            while not self._planner.is_done:
                self._changed.clear()
                self._turn_places(time.monotonic())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._changed.wait()
                self._reap()
                if looking.done():
                    looking.result()
                self._check()
        finally:
            tasks = [looking, *self._active.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._active.clear()
            self._giving_way.clear()
            self._roster.vacate()
            self._tell()

    def _plan(self, wanted: Sequence[Wanted]) -> Planner:
        entries = self._cache.manifest.entries
        files = {tensor: self._cache.shard(one.shard) for one in wanted for tensor in one.pieces}
        missing = {tensor: found for one in wanted for tensor, found in self._cache.shard(one.shard).missing(one).items()}
        self._here = self.report.total_bytes - sum(
            entries[tensor].piece_bytes(piece) for tensor, pieces_ in missing.items() for piece in pieces_
        )
        self.report.resumed_bytes = self.report.resumed_bytes or self._here
        listed = [tensor for tensor, file in files.items() if file.hashes(tensor) is not None]
        return Planner({tensor: entries[tensor].num_bytes for tensor in files}, missing, listed)

    # --- sources

    async def _keep_looking(self) -> None:
        """Ask the directory who has these weights, as long as that may help."""
        while True:
            if self._wants_more() or self._planner.uncovered():
                try:
                    async with asyncio.timeout(self._options.progress_timeout_s):
                        self._roster.know(await self._look())
                except TimeoutError:
                    self._failure = DeadlineError(f"the directory did not answer within {self._options.progress_timeout_s:.0f} s")
                except SwarmError as error:
                    self._failure = error
                self._changed.set()
            await asyncio.sleep(LOOK_S)

    def _wants_more(self) -> bool:
        return len(self._active) < self._options.max_sources or not self._roster.waiting(time.monotonic())

    def _turn_places(self, now_s: float) -> None:
        """Take places from those that do not use them, and give free ones: one more than allowed if none of these has all."""
        for peer in self._roster.giving_way(now_s, self._planner.is_idle):
            self._giving_way.add(peer)
            self._active[peer].cancel()
        for record in self._roster.next(now_s, extra=1 if self._planner.uncovered() else 0):
            self._roster.open(record.peer, now_s)
            self._active[record.peer] = asyncio.create_task(self._ask(record), name=f"weights of {short_peer(record.peer)}")

    def _reap(self) -> None:
        """Hear what ended sources say; a fault of ours, or of the disk, is raised."""
        for peer, task in list(self._active.items()):
            if not task.done():
                continue
            del self._active[peer]
            gave_way = peer in self._giving_way
            self._giving_way.discard(peer)
            fault = SlowSourceError(f"peer {short_peer(peer)} was too slow") if task.cancelled() else task.exception()
            if fault is not None and (not isinstance(fault, SwarmError) or isinstance(fault, DiskFullError)):
                raise fault
            if fault or not self._planner.is_done:  # else all is here, and it may be asked for the next shards at once
                self._judge(peer, SlowSourceError(f"peer {short_peer(peer)} gave its place to another") if gave_way else fault)

    def _judge(self, peer: PeerId, fault: SwarmError | None) -> None:
        if isinstance(fault, LyingSourceError):
            self._roster.refuse(peer)
            self.report.liars[peer] = str(fault)
            log.warning("%s; it is not asked again", fault)
            self._options.on_warning(f"{fault}; it is not asked again, what it owed comes from others")
            return
        self._roster.close(peer, time.monotonic(), has_failed=fault is not None and not isinstance(fault, OverloadedError))
        if fault:
            self._failure = fault
            log.info("source %s of %s is left for now: %s", short_peer(peer), self._cache.model.name, fault)

    def _check(self) -> None:
        silent_s = time.monotonic() - self._progress_at_s
        if silent_s < self._options.progress_timeout_s or self._planner.is_done:
            return
        entries, uncovered = self._cache.manifest.entries, sorted(self._planner.uncovered())
        what = f"no peer gave tensor {entries[uncovered[0]].name!r}" if uncovered else "no peer sent anything"
        raise NoRouteError(
            f"{self._cache.model.name}: {what} for {silent_s:.0f} s"
            + (f" (last failure: {self._failure})" if self._failure else "")
            + "; what has been fetched is kept: try again, or give a directory that holds the model"
        )

    async def _ask(self, peer: PeerRecord) -> None:
        """Keep one source busy until nothing is left to do."""
        source = await Source.open(
            self._pool, peer, self._cache.model, self._cache.manifest, self._options.stall_s, self._roster.connect_s(peer.peer)
        )
        intake = Intake(source, self._planner, self._cache, self._roster, self._on_disk, self._count, time.monotonic)
        try:
            await intake.run()
        finally:
            self._planner.drop(source.peer)
            self._changed.set()
            source.close()

    def _count(self, peer: PeerId, came_bytes: int, new_bytes: int) -> None:
        """Hear what has come from a source, and how much of that is new here."""
        self.report.fetched_bytes += came_bytes
        if not new_bytes:
            return
        self._here += new_bytes
        self.report.from_peer[peer] = self.report.from_peer.get(peer, 0) + new_bytes
        if self._here - self._marked_bytes >= MARK_BYTES:
            self._progress_at_s, self._marked_bytes = time.monotonic(), self._here
        self._tell()
        if self._planner.is_done:
            self._changed.set()

    def _tell(self) -> None:
        self._options.on_progress(
            Progress(
                total_bytes=self.report.total_bytes,
                done_bytes=self._here,
                resumed_bytes=self.report.resumed_bytes,
                fetched_bytes=self.report.fetched_bytes,
                num_sources=len(self._active),
            )
        )
