"""Moves a running node to the blocks that the swarm needs most.

The decision is pure (`swarm/placement/rebalance.py`). A move is announced as `joining`, waits like a newcomer's (`span_choice.py`), is
decided once more, loads the new span while the old one serves, looks a last time, and drains the old one. If the memory does not
hold both, the old one is given up first, if the others have a route without it (or there is no route at all).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from node.events import Event, OnEvent
from node.placement import span_choice
from node.placement.liveness import Liveness, watched
from node.placement.proving import Prover
from node.serving import handover
from node.serving.host import Host
from protocols.defaults import DRAIN_S, PLACEMENT_COOL_DOWN_S, PLACEMENT_LOOK_S
from protocols.errors import SwarmError
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from swarm.clock import SYSTEM, Clock
from swarm.placement.choose import Capacity
from swarm.placement.members import Member
from swarm.placement.rebalance import Hysteresis, Move, counted, decide, may_retire, may_switch

log = logging.getLogger(__name__)


class Announcing(handover.Announcing, Protocol):
    """What the swarm sees of us, and we of it (`presence.py`)."""

    me: PeerId
    hosts: list[Host]

    @property
    def is_paused(self) -> bool: ...

    def claims_by_peer(self, records: Sequence[PeerRecord]) -> list[span_choice.Claims]: ...

    def as_member(self, span: Span) -> Member: ...

    async def records(self) -> Sequence[PeerRecord]: ...

    async def join(self, span: Span | None) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Waiting times of a node that may move, in seconds; tests use shorter ones."""

    look_s: float = PLACEMENT_LOOK_S
    cool_down_s: float = PLACEMENT_COOL_DOWN_S
    race_wait_s: float = span_choice.RACE_WAIT_S
    drain_s: float = DRAIN_S


@dataclass(kw_only=True)
class Mover:
    """This node's place from its first span on; one move at a time. Whatever fails, what served before the move serves after it."""

    host: Host | None
    """The one that serves; while a move goes on, the old one; None in between if memory does not hold both."""
    presence: Announcing
    dispatcher: handover.Opening
    make: Callable[[Span], Awaitable[Host]]
    """Loads a span and starts its host."""
    capacity: Capacity
    """What the memory takes when nothing of ours is loaded."""
    free_bytes: Callable[[], int]
    """What it takes now, beside what is loaded."""
    liveness: Liveness
    prover: Prover
    """Tells which replicas of our blocks compute."""
    on_event: OnEvent
    pace: Pace = field(default_factory=Pace)
    clock: Clock = SYSTEM

    def __post_init__(self) -> None:
        self._joining = span_choice.Joining()
        self._hysteresis = Hysteresis(cool_down_s=self.pace.cool_down_s)
        self.num_blocks = len(self.capacity.block_bytes)
        assert self.host is not None, "a node that serves nothing has nowhere to move from"
        self.span = self.host.served.span

    async def keep_looking(self, draw: random.Random) -> NoReturn:
        """Until cancelled, a look every `look_s`, give or take a fifth: who looks at the same moment decides by old looks."""
        while True:
            await asyncio.sleep(self.pace.look_s * draw.uniform(0.8, 1.2))
            try:
                await self.look()
            except (SwarmError, MemoryError) as error:
                if not self.presence.hosts:  # neither the new span nor the old one can be loaded any more
                    raise
                log.warning("no better place for this node, for now: %s", error)

    async def look(self) -> bool:
        """Look, decide, and move if that is better for all. True if this node moved. A node that is paused keeps its blocks."""
        if self.presence.is_paused:
            return False
        records = await self.presence.records()
        known = self._claims_by_peer(records)
        asked = await asyncio.to_thread(watched, self.presence.me, [one.claim for one in known], self.num_blocks)
        await self.liveness.check([record for record in records if record.peer in asked])
        # Asking takes seconds, and another node may have decided meanwhile.
        claims = [one.claim for one in await self._look_again()]
        decided = await self._decide(claims)
        if decided is not None:  # a node that would take over our blocks has to show first that it computes them
            decided = await self._decide_with_proofs(records, claims)
        move = self._hysteresis.consider(decided, self.clock.now_s())
        return move is not None and await self._move(move)

    async def _decide_with_proofs(self, records: Sequence[PeerRecord], claims: Sequence[Member]) -> Move | None:
        assert self.host is not None
        await self.prover.check(self.host, records, claims)
        return await self._decide(self._counted(claims))

    def _counted(self, others: Sequence[Member]) -> list[Member]:
        """Those that we count on: replicas of our blocks only if they have computed them for us."""
        return counted(self._ourselves(), others, self.prover.proven(self.span, others))

    def _claims_by_peer(self, records: Sequence[PeerRecord]) -> list[span_choice.Claims]:
        return self._joining.current(self.presence.claims_by_peer(records), self.clock.now_s())

    async def _look_again(self) -> list[span_choice.Claims]:
        known = self._claims_by_peer(await self.presence.records())
        return [one for one in known if one.peer not in self.liveness.gone]

    async def _decide(self, others: Sequence[Member]) -> Move | None:
        """What the plan says of us, as long as it fits. A plan of many members takes a second, hence the thread."""
        move = await asyncio.to_thread(decide, self.presence.me, [*others, self._ourselves()], self.num_blocks)
        return move if move is not None and self.capacity.fits(move.span) else None

    def _ourselves(self) -> Member:
        return self.presence.as_member(self.span)

    async def _move(self, move: Move) -> bool:
        """Announce it, wait for nodes that decide at the same moment, decide anew, and go."""
        old, new = self.span, move.span
        try:
            await self.presence.join(new)
            await asyncio.sleep(self.pace.race_wait_s)
            known = await self._look_again()
            confirmed = await self._decide(self._counted([one.seen_by(self.presence.me) for one in known]))
            if confirmed is None or confirmed.span != new:
                log.info("blocks %s stay, and %s are left to others: they move at the same moment", old, new)
                return False
            self.on_event(Event("moving", f"from {old} to {new}: {move.reason}"))
            if self.capacity.takes(new) <= self.free_bytes():
                await self._load_then_leave(move)
            elif may_retire(self._ourselves(), self._count_on(known), self.num_blocks):
                await self._leave_then_load(move)
            else:
                log.info("blocks %s stay: no memory for %s beside them, and no other node serves them", old, new)
        finally:
            if self.span == old:
                await self.presence.join(None)
        if self.span == old:
            return False
        self._hysteresis.moved(self.clock.now_s())
        return True

    def _count_on(self, known: Sequence[span_choice.Claims]) -> list[Member]:
        """What the others serve, and go on serving whatever we do."""
        return self._counted([one.serving for one in known if one.serving is not None and one.stands(self.presence.me)])

    async def _load_then_leave(self, move: Move) -> None:
        async with contextlib.AsyncExitStack() as given_up:
            host = await self.make(move.span)
            given_up.push_async_callback(host.stop)
            if not await self._may_switch(move):
                log.info("blocks %s stay: without them there would be no route now", self.span)
                return
            given_up.pop_all()
        old = self.host
        assert old is not None
        await self._serve(host, move)
        await self._retire(old)

    async def _may_switch(self, move: Move) -> bool:
        """The last look. Replicas are tested again, since loading may take longer than a proof lasts (PROVEN_S)."""
        assert self.host is not None
        records = await self.presence.records()
        serving = [one.serving for one in self._claims_by_peer(records) if one.serving is not None]
        await self.prover.check(self.host, records, serving)
        others = self._count_on(await self._look_again())
        return await asyncio.to_thread(may_switch, self._ourselves(), move.span, others, self.num_blocks)

    async def _leave_then_load(self, move: Move) -> None:
        """The node serves nothing in between. If the new span cannot be loaded, the old one is loaded again."""
        await self._give_up()
        host = await self._make_if_possible(move.span)
        await self._serve(host or await self.make(self.span), move)

    async def _make_if_possible(self, span: Span) -> Host | None:
        """None if it cannot be loaded. Outside of `except`, nothing refers to what the failed attempt had loaded."""
        try:
            return await self.make(span)
        except (SwarmError, MemoryError):
            log.exception("blocks %s could not be loaded; back to %s", span, self.span)
            return None

    async def _give_up(self) -> None:
        """Nothing refers to the old host afterwards, so that its memory is free."""
        assert self.host is not None
        await self._retire(self.host)
        self.host = None
        gc.collect()

    async def _serve(self, host: Host, move: Move) -> None:
        old = self.span
        self.host, self.span = host, host.served.span
        await handover.begin(host, self.dispatcher, self.presence)
        if self.span != old:
            self.on_event(Event("moved", f"from {old} to {self.span}: {move.reason}"))

    async def _retire(self, host: Host) -> None:
        await handover.retire(host, self.dispatcher, self.presence, self.pace.drain_s)
