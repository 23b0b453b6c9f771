"""One download: units of a model into the cache, from several peers at once, every piece proven before it is kept.

`Download.run` holds the units' locks, keeps a few sources busy (`planner.py` says with what), and ends when all is there. A source that
lies is named and not asked again; one that dies, stalls or refuses is tried again later, and the directory is asked for others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from protocols import pieces
from protocols.errors import DiskFullError, NoRouteError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.records import PeerRecord
from swarm.rpc.pool import ChannelPool
from swarm.weights.cache import ModelCache
from swarm.weights.layout import Unit
from swarm.weights.planner import PieceId, Planner
from swarm.weights.source import STALL_S, LyingSourceError, Source

log = logging.getLogger(__name__)

MAX_SOURCES = 8
"""Peers that are asked at once."""

PATIENCE_S = 60.0
"""Seconds without any progress before a download gives up."""

LOOK_S = 2.0
"""Pause before the directory is asked for sources again, and before a source that failed is tried again (then twice as long)."""

IDLE_S = 0.05
"""Pause of a source that has nothing to do until another delivers, or fails."""

LOCKED_S = 0.5
"""Pause before a unit that another process is fetching is looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is. All numbers are bytes of pieces, except `fetched_bytes`."""

    total_bytes: int
    """Of the units, whatever was there before."""
    done_bytes: int
    """Proven and stored."""
    resumed_bytes: int
    """Of these: stored by an earlier attempt."""
    fetched_bytes: int
    """All that came from peers in this attempt, headers and lists of hashes too."""
    num_sources: int
    """Peers that are being asked now."""


@dataclass(kw_only=True)
class Report:
    """What a download took."""

    total_bytes: int = 0
    resumed_bytes: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    from_peer: dict[PeerId, int] = field(default_factory=dict)
    """Bytes of pieces that each gave."""
    liars: dict[PeerId, str] = field(default_factory=dict)
    """Peers that sent what the model does not have, and what it was."""


Sources = Callable[[], Awaitable[Sequence[PeerRecord]]]
"""Asks the directory: who may have these weights, the best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How patient a download is, and whom it tells."""

    max_sources: int = MAX_SOURCES
    patience_s: float = PATIENCE_S
    stall_s: float = STALL_S
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_warning: Callable[[str], None] = lambda text: None
    """A line for people: a peer that lies, by name."""


class Download:
    """Fetches `units` into `cache`."""

    def __init__(self, cache: ModelCache, units: Iterable[Unit], pool: ChannelPool, sources: Sources, options: Options) -> None:
        self._cache, self._pool, self._look, self._options = cache, pool, sources, options
        self._units = tuple(units)
        self.report = Report()
        self._disk = ThreadPoolExecutor(2, thread_name_prefix="weights")
        self._active: dict[PeerId, asyncio.Task[None]] = {}
        self._closed: dict[PeerId, tuple[int, float]] = {}
        """Failures of a source, and when it may be tried again."""
        self._changed = asyncio.Event()
        self._progress_at_s = 0.0

    async def run(self) -> Report:
        """Returns when every unit is whole. NoRouteError: no progress for `patience_s`; DiskFullError; what is stored stays stored."""
        started_s = time.monotonic()
        entries = self._cache.manifest.entries
        self.report.total_bytes = sum(entries[tensor].num_bytes for unit in self._units for tensor in unit.tensors)
        try:
            await self._on_disk(self._cache.check_room, [unit for unit in self._units if not self._cache.unit(unit).is_complete])
            while left := [unit for unit in self._units if not self._cache.unit(unit).is_complete]:
                if not await self._fetch_unlocked(left):
                    await asyncio.sleep(LOCKED_S)  # another process of this machine is fetching all that is left
        finally:
            self.report.seconds = time.monotonic() - started_s
            self._disk.shutdown(wait=False)
        return self.report

    async def _on_disk(self, work: Callable[..., object], *arguments: object) -> object:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work, *arguments)

    async def _fetch_unlocked(self, units: Sequence[Unit]) -> bool:
        """Fetch those that no other process is fetching; False where there are none."""
        with contextlib.ExitStack() as locks:
            mine = []
            for unit in units:
                if await self._on_disk(locks.enter_context, self._cache.unit(unit).locked()):
                    mine.append(unit)
            if mine:
                await self._fetch(mine)
        return bool(mine)

    async def _fetch(self, units: Sequence[Unit]) -> None:
        self._planner = self._plan(units)
        self._progress_at_s = time.monotonic()
        self._tell()
        failed: list[BaseException] = []
        try:
            while not self._planner.is_done:
                self._changed.clear()
                await self._open_sources()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()
                failed += self._reap()
                self._check(failed)
        finally:
            for task in self._active.values():
                task.cancel()
            await asyncio.gather(*self._active.values(), return_exceptions=True)
            self._active.clear()
            self._tell()

    def _plan(self, units: Sequence[Unit]) -> Planner:
        entries = self._cache.manifest.entries
        files = {tensor: self._cache.unit(unit) for unit in units for tensor in unit.tensors}
        missing = {tensor: tuple(file.stored[tensor].missing()) for tensor, file in files.items()}
        self._here = self.report.total_bytes - sum(
            entries[tensor].piece_bytes(piece) for tensor, pieces_ in missing.items() for piece in pieces_
        )
        self.report.resumed_bytes = self.report.resumed_bytes or self._here
        listed = [tensor for tensor, file in files.items() if file.hashes(tensor) is not None]
        return Planner({tensor: entries[tensor].num_bytes for tensor in files}, missing, listed)

    # --- sources

    async def _open_sources(self) -> None:
        """Start asking more peers where that may help: fewer than allowed are asked, or somebody must have what none of these has."""
        now_s = time.monotonic()
        wanted = self._options.max_sources - len(self._active)
        if wanted <= 0 and self._planner.uncovered():
            wanted = 1
        if wanted <= 0:
            return
        for peer in await self._look():
            _failures, again_s = self._closed.get(peer.peer, (0, 0.0))
            if peer.peer in self._active or peer.peer in self.report.liars or again_s > now_s:
                continue
            self._active[peer.peer] = asyncio.create_task(self._ask(peer), name=f"weights of {short_peer(peer.peer)}")
            wanted -= 1
            if wanted <= 0:
                return

    def _reap(self) -> list[BaseException]:
        """What ended sources say; the disk's faults are raised."""
        faults: list[BaseException] = []
        for peer, task in list(self._active.items()):
            if not task.done():
                continue
            del self._active[peer]
            fault = task.exception()
            if fault is not None and not isinstance(fault, SwarmError):
                raise fault
            if isinstance(fault, DiskFullError):
                raise fault
            self._judge(peer, fault)
            faults += [fault] if fault else []
        return faults

    def _judge(self, peer: PeerId, fault: SwarmError | None) -> None:
        if isinstance(fault, LyingSourceError):
            self.report.liars[peer] = str(fault)
            log.warning("%s; it is not asked again", fault)
            self._options.on_warning(f"{fault}; it is not asked again, what it owed comes from others")
            return
        failures, _ = self._closed.get(peer, (0, 0.0))
        self._closed[peer] = failures + 1, time.monotonic() + LOOK_S * 2 ** min(failures, 4)
        if fault:
            log.info("source %s of %s is left for now: %s", short_peer(peer), self._cache.model.name, fault)

    def _check(self, failed: Sequence[BaseException]) -> None:
        silent_s = time.monotonic() - self._progress_at_s
        if silent_s < self._options.patience_s or self._planner.is_done:
            return
        entries, uncovered = self._cache.manifest.entries, sorted(self._planner.uncovered())
        what = f"no peer gave tensor {entries[uncovered[0]].name!r}" if uncovered else "no peer sent anything"
        raise NoRouteError(
            f"{self._cache.model.name}: {what} for {silent_s:.0f} s"
            + (f" (last failure: {failed[-1]})" if failed else "")
            + "; what has been fetched is kept: try again, or give a directory that holds the model"
        )

    async def _ask(self, peer: PeerRecord) -> None:
        """Keep one source busy until nothing is left to do."""
        source = await Source.open(self._pool, peer, self._cache.model, self._cache.manifest, self._options.stall_s)
        counted = 0
        try:
            self._planner.add(source.peer, await source.holdings())
            while not self._planner.is_done:
                if ask := self._planner.take(source.peer, time.monotonic()):
                    await source.ask(ask)
                if self._planner.owes(source.peer):
                    await self._take_one(source)
                elif not await self._wait_for_work(source):
                    return
                self.report.fetched_bytes += source.num_bytes - counted
                counted = source.num_bytes
        finally:
            self.report.fetched_bytes += source.num_bytes - counted
            self._planner.drop(source.peer)
            self._changed.set()
            source.close()

    async def _wait_for_work(self, source: Source) -> bool:
        """Nothing to ask now: others owe the rest. False where this source has nothing of it, nor has got any since."""
        if self._planner.can_help(source.peer):
            await asyncio.sleep(IDLE_S)
            return True
        await asyncio.sleep(LOOK_S / 2)
        self._planner.add(source.peer, await source.holdings())
        return self._planner.can_help(source.peer)

    async def _take_one(self, source: Source) -> None:
        answer = await source.receive()
        now_s = time.monotonic()
        unit = self._cache.unit(self._cache.layout.unit_of[answer.tensor])
        if isinstance(answer, pieces.Hashes):
            if not self._planner.is_asked_hashes(source.peer, answer.tensor) or not unit.put_hashes(answer.tensor, answer.hashes):
                raise LyingSourceError(f"peer {source.name} sent hashes that are not those of {self._name(answer.tensor)}")
            self._planner.listed(source.peer, answer.tensor, now_s)
            return
        piece = PieceId(answer.tensor, answer.piece)
        if not self._planner.is_asked(source.peer, piece):
            raise LyingSourceError(
                f"peer {source.name} sent piece {answer.piece} of {self._name(answer.tensor)}, which nobody asked for"
            )
        if not self._planner.arrived(source.peer, piece, now_s):
            return  # another source was faster
        if not await self._on_disk(unit.put, answer.tensor, answer.piece, answer.data):
            self._planner.failed(source.peer, piece)
            raise LyingSourceError(f"peer {source.name} sent a wrong piece {answer.piece} of {self._name(answer.tensor)}")
        if self._planner.proven(source.peer, piece):
            self._here += len(answer.data)
            self.report.from_peer[source.peer] = self.report.from_peer.get(source.peer, 0) + len(answer.data)
        self._progress_at_s = time.monotonic()
        self._tell()
        if self._planner.is_done:
            self._changed.set()

    def _name(self, tensor: int) -> str:
        return repr(self._cache.manifest.entries[tensor].name)

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
