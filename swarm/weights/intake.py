"""Keeps one source of a download busy, and stores what it gives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from protocols import pieces
from protocols.ids import PeerId
from swarm.weights.cache import ModelCache
from swarm.weights.planner import Planner
from swarm.weights.roster import Roster
from swarm.weights.source import LyingSourceError, Source
from swarm.weights.source_state import PieceId

IDLE_S = 0.05
"""Pause of a source that has nothing to do until another delivers, or fails."""

AGAIN_S = 1.0
"""Pause before a source that has nothing of what is to come is asked what it has now."""

OnDisk = Callable[..., Awaitable[object]]
"""Runs its first argument with the others, in a thread for work on the disk."""

OnBytes = Callable[[PeerId, int, int], None]
"""(source, bytes that came, bytes of pieces among them that are proven, stored, and were not here before)."""


class Intake:
    """One source and what it has been asked. `run` ends when nothing is left to do, or with the fault of the source or of the disk."""

    def __init__(
        self,
        source: Source,
        planner: Planner,
        cache: ModelCache,
        roster: Roster,
        on_disk: OnDisk,
        on_bytes: OnBytes,
        clock: Callable[[], float],
    ) -> None:
        self._source, self._planner, self._cache, self._roster = source, planner, cache, roster
        self._on_disk, self._on_bytes, self._clock = on_disk, on_bytes, clock
        self._counted_bytes = 0

    async def run(self) -> None:
        """Ask and take until the download is done, or this source has nothing more of it.

        LyingSourceError: it sent what was not asked for, or is wrong; no byte of that is kept. The caller drops it from the planner.
        """
        peer = self._source.peer
        try:
            self._planner.add(peer, await self._source.holdings())
            self._roster.heard(peer, 0, self._clock())
            while not self._planner.is_done:
                was_idle = not self._planner.owes(peer)
                if ask := self._planner.take(peer, self._clock()):
                    if was_idle:
                        self._roster.asked(peer, self._clock())
                    await self._source.ask(ask)
                if self._planner.owes(peer):
                    self._count(await self._take())
                elif not await self._wait_for_work():
                    return
        finally:
            self._count(0)

    def _count(self, new_bytes: int) -> None:
        came_bytes = self._source.num_bytes - self._counted_bytes
        self._counted_bytes = self._source.num_bytes
        self._on_bytes(self._source.peer, came_bytes, new_bytes)

    async def _wait_for_work(self) -> bool:
        """Nothing to ask now: others owe the rest. False where this source has nothing of it, nor has got any since."""
        if self._planner.can_help(self._source.peer):
            await asyncio.sleep(IDLE_S)
            return True
        await asyncio.sleep(AGAIN_S)
        self._planner.add(self._source.peer, await self._source.holdings())
        return self._planner.can_help(self._source.peer)

    async def _take(self) -> int:
        """The next answer; bytes of the piece that is new here."""
        answer = await self._source.receive()
        return await (self._take_hashes(answer) if isinstance(answer, pieces.Hashes) else self._take_piece(answer))

    async def _take_hashes(self, answer: pieces.Hashes) -> int:
        peer, shard = self._source.peer, self._cache.shard(self._cache.layout.shard_of[answer.tensor])
        is_asked = self._planner.is_asked_hashes(peer, answer.tensor)
        if not is_asked or not await self._on_disk(shard.put_hashes, answer.tensor, answer.hashes):
            raise LyingSourceError(f"peer {self._source.name} sent hashes that are not those of {self._name(answer.tensor)}")
        self._planner.listed(peer, answer.tensor, self._clock())
        self._roster.heard(peer, 0, self._clock())
        return 0

    async def _take_piece(self, answer: pieces.Piece) -> int:
        peer, piece, now_s = self._source.peer, PieceId(answer.tensor, answer.piece), self._clock()
        what = f"piece {answer.piece} of {self._name(answer.tensor)}"
        if not self._planner.is_asked(peer, piece):
            raise LyingSourceError(f"peer {self._source.name} sent {what}, which was not asked for")
        if not self._planner.arrived(peer, piece, now_s):
            self._roster.heard(peer, 0, now_s)
            return 0  # another source was faster
        shard = self._cache.shard(self._cache.layout.shard_of[answer.tensor])
        try:
            is_right = await self._on_disk(shard.put, answer.tensor, answer.piece, answer.data)
        except BaseException:
            self._planner.failed(peer, piece)  # cancelled, or the disk is full: another may deliver it
            raise
        if not is_right:
            self._planner.failed(peer, piece)
            raise LyingSourceError(f"peer {self._source.name} sent a wrong {what}")
        self._roster.heard(peer, len(answer.data), self._clock())
        return len(answer.data) if self._planner.proven(peer, piece) else 0

    def _name(self, tensor: int) -> str:
        return repr(self._cache.manifest.entries[tensor].name)
