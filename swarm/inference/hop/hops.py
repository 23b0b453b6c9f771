"""All sessions at one node.

Which may enter, which are dropped, and how much is retained in total.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocols.defaults import IDLE_S, MAX_SESSIONS, MAX_SESSIONS_PER_CLIENT, RESUME_S, RETAINED_BYTES
from protocols.errors import BadRequestError, DrainingError, NotAllowedError, OverloadedError, UnauthenticatedError
from protocols.ids import PeerId, SessionId, Span, short_peer
from protocols.inference import Attach, Close, Grant, Open, Reroute
from protocols.words import counted
from swarm.access import Gate
from swarm.clock import SYSTEM, Clock
from swarm.inference.hop import grants
from swarm.inference.hop.closed import Closed
from swarm.inference.hop.compute import SessionCompute
from swarm.inference.hop.hop import Hop, Key
from swarm.inference.hop.kept_sessions import KeptSessions
from swarm.inference.hop.pace import EPOCHS_S, Pace
from swarm.inference.hop.place import Place
from swarm.inference.hop.sequences import Sequences
from swarm.inference.hop.shares import to_give_way
from swarm.streams.dials import MAX_DIALS
from swarm.streams.links import Links
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

SWEEP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLimits:
    """Bounds on what sessions may cost this node."""

    max_sessions: int = MAX_SESSIONS
    """Sessions held at once; the next one takes the place of one that is not used, or is refused with OverloadedError."""

    max_sessions_per_client: int = MAX_SESSIONS_PER_CLIENT
    """Of one client; its next one is refused with OverloadedError."""

    resume_s: float = RESUME_S
    """Seconds that a session without a hop above is kept."""

    idle_s: float = IDLE_S
    """Seconds without any message before a session is dropped."""

    unused_s: float = 60.0
    """Seconds without any message before a session gives its place to a new one, if there is no other."""

    epochs_s: float = EPOCHS_S
    """Seconds in which one session may begin MAX_EPOCHS epochs (`pace.py`)."""

    max_dials: int = MAX_DIALS
    """Next hops that are dialled at once, for all clients."""

    max_kept: int = 512
    """Ended sessions that are kept for forks, in memory that is free otherwise."""

    max_kept_per_client: int = 256
    """Of one client; with its next one, the least recently used goes."""

    keep_s: float = 600.0
    """Longest time, in seconds, for which an ended session is kept after its last use."""

    kept_bytes: int = RETAINED_BYTES // 4
    """Sent activations of all ended sessions; beyond it the least recently used ones go."""

    retained_bytes: int = RETAINED_BYTES
    """Sent activations kept for all sessions; beyond it the client that holds most loses its largest history."""

    held_bytes: int = 2 * RETAINED_BYTES
    """All activations that sessions keep alive: what waits, comes in and was answered included; beyond it the client that
    holds most loses its largest session."""


class Hops:
    """The sessions of one node by (client, session id, blocks): a client cannot reach another client's session.

    A new route may ask a node for other blocks than the one before: that is another hop, with sequences of its own.
    """

    def __init__(
        self,
        served: grants.Served,
        links: Links,
        new_compute: Callable[[Grant, Span], SessionCompute],
        limits: HopLimits,
        gate: Gate | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """gate: for which clients we compute; None = for all."""
        self._gate, self._clock = gate or Gate(), clock
        self.served = served
        self.is_draining = False
        self.is_paused = False
        """No session begins here, and those that are open go on: an operator's word."""
        self._links, self._new_compute, self._limits = links, new_compute, limits
        self._hops: dict[tuple[PeerId, SessionId, Span], Hop] = {}
        self._closed = Closed()
        self.kept = KeptSessions(clock.now_s, most=limits.max_kept, most_per_client=limits.max_kept_per_client)
        self._tasks = Tasks()

    def __len__(self) -> int:
        return len(self._hops)

    def enter(self, opening: Open | Attach, caller: PeerId) -> Hop:
        """The session that a stream's first message is about: created if there is none and everything proves right.

        Raises UnauthenticatedError, ModelMismatchError, SpanNotServedError, BadRequestError, DrainingError or OverloadedError.
        """
        grant = opening.grant
        index = opening.index if isinstance(opening, Open) else len(grant.route) - 1
        grants.verify(grant, self.served, self._clock.unix_s())
        grants.verify_place(grant, index, self.served)
        expected = grants.caller_of(grant, index) if isinstance(opening, Open) else grant.client
        if caller != expected:
            raise UnauthenticatedError(
                f"hop {index} of this session is called by {short_peer(expected)}, not by {short_peer(caller)}"
            )
        if isinstance(opening, Open) and opening.dtype != self.served.dtype:
            raise BadRequestError(
                f"this peer computes in {self.served.dtype}, the route in {opening.dtype}: a route uses one precision"
            )
        self._gate.check_client(grant.client)
        hop = self._hops.get((grant.client, grant.session, grant.route[index].span))
        if hop is not None:
            if not hop.is_closed:
                return hop
            self._note_end(hop)  # it still gives its memory back
        self._closed.check(grant, grant.route[index].span)
        return self._create(grant, index)

    def check_pass(self, grant: Grant | None, index: int) -> None:
        """Do we compute for the client of a differentiable pass, as hop `index`? The first hop's caller was checked by the server.

        UnauthenticatedError, ModelMismatchError or NotAllowedError says why not.
        """
        if grant is not None:
            grants.verify(grant, self.served, self._clock.unix_s())
            self._gate.check_client(grant.client)
        elif index and self._gate.access.is_limited:
            raise NotAllowedError("this peer does not compute for all (--allow, --deny): a pass must bring its client's grant")

    def find(self, client: PeerId, session: SessionId, span: Span) -> Hop | None:
        """A client's session, where it is here."""
        return self._hops.get((client, session, span))

    def check_reroute(self, reroute: Reroute, hop: Hop, caller: PeerId) -> None:
        """A Reroute came over a stream that is already trusted: its grant must be the client's all the same."""
        grant = reroute.grant
        grants.verify(grant, self.served, self._clock.unix_s())
        grants.verify_place(grant, reroute.index, self.served)
        if (grant.client, grant.session) != (hop.place.grant.client, hop.place.grant.session):
            raise UnauthenticatedError("a new route must be granted by the client that opened the session")
        if grant.route[reroute.index].span != hop.place.span:
            raise BadRequestError(
                f"this stream is about blocks {hop.place.span}, the new route wants {grant.route[reroute.index].span}"
            )
        if caller != grants.caller_of(grant, reroute.index):
            raise UnauthenticatedError(f"the new route has another hop above this one than {short_peer(caller)}")

    def _create(self, grant: Grant, index: int) -> Hop:
        if self.is_draining:
            raise DrainingError("this peer is leaving the swarm: try another one")
        if self.is_paused:
            raise DrainingError("an operator has paused this peer, and it takes no new sessions: try another one")
        if sum(client == grant.client for client, _, _ in self._hops) >= self._limits.max_sessions_per_client:
            raise OverloadedError(
                f"you hold {counted(self._limits.max_sessions_per_client, 'session')} here, "
                "the limit of one client: close some, or use a replica"
            )
        if len(self._hops) >= self._limits.max_sessions:
            self._make_room()
        compute = self._new_compute(grant, grant.route[index].span)
        pace = Pace(self._clock.now_s, epochs_s=self._limits.epochs_s)
        place = Place(grant, index, self.served.num_blocks)
        hop = Hop(place, self.served.dtype, compute, self._links, self._source, self._clock.now_s, pace)
        self._hops[grant.client, grant.session, hop.place.span] = hop
        self._tasks.keep(self._run(hop))
        return hop

    def _source(self, key: Key) -> Sequences | None:
        """What a fork of a session begins with: of an open one, or of one that was kept."""
        hop = self._hops.get(key)
        return self.kept.use(key) if hop is None else hop.sequences

    def _make_room(self) -> None:
        """End a session that was not used for a while, of the client that holds most. OverloadedError if there is none."""
        now_s, held = self._clock.now_s(), Counter(client for client, _, _ in self._hops)
        unused = [hop for hop in self._hops.values() if not hop.is_closed and now_s - hop.last_active_s >= self._limits.unused_s]
        if not unused:
            raise OverloadedError(f"this peer holds {counted(len(self._hops), 'session')}, its limit: try a replica, or later")
        hop = max(unused, key=lambda hop: (held[hop.place.grant.client], now_s - hop.last_active_s))
        log.info("%s: ended: it was not used, and another client needs its place", hop)
        self._tasks.keep(hop.put(None, _close(hop)))

    async def _run(self, hop: Hop) -> None:
        key = hop.place.grant.client, hop.place.grant.session, hop.place.span
        try:
            with self._gate.running(hop.place.grant.client, lambda: self._tasks.keep(hop.put(None, _close(hop)))):
                await hop.run()
        except Exception:
            log.exception("%s: ended by a fault of ours", hop)
        finally:
            self._note_end(hop)
            if self._hops.get(key) is hop:  # the client may have opened it anew while this one gave its memory back
                del self._hops[key]
            self._keep(key, hop.sequences)

    def _keep(self, key: Key, sequences: Sequences) -> None:
        """Keep an ended session if its client asked for it; others go instead."""
        if sequences.keep_s and not self.is_draining:
            self._free(self.kept.add(key, sequences, min(sequences.keep_s, self._limits.keep_s)))
        elif sequences.keep_s:
            self._free([sequences])

    def _free(self, ended: Iterable[Sequences]) -> None:
        for sequences in ended:
            self._tasks.keep(sequences.free())

    def _note_end(self, hop: Hop) -> None:
        if hop.up.was_opened:
            self._closed.note(hop.place.grant, hop.place.span, self._clock.unix_s())

    def start(self) -> None:
        """Drop sessions whose time is over, from now on until `stop`."""
        self._tasks.keep(self._sweep(), "session sweeper")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self._clock.now_s()
            for hop in list(self._hops.values()):
                if self._is_over(hop, now_s):
                    log.info("%s: dropped: not asked for in time", hop)
                    await hop.put(None, _close(hop))
            self._free(self.kept.over(self._limits.kept_bytes))
            self._bound_retained()
            for hop in self._too_large():
                log.info("%s: ended: it keeps %d bytes, and this node's limit is passed", hop, hop.held_bytes)
                await hop.put(None, _close(hop))

    def _is_over(self, hop: Hop, now_s: float) -> bool:
        is_orphan = hop.up.orphaned_since_s is not None and now_s - hop.up.orphaned_since_s > self._limits.resume_s
        return is_orphan or now_s - hop.last_active_s > self._limits.idle_s

    def _bound_retained(self) -> None:
        """Give back histories beyond the limit: a death below them then costs a replay from above."""
        for hop in to_give_way(
            self._hops.values(), _client, lambda hop: hop.down.retained.num_bytes, self._limits.retained_bytes
        ):
            if hop.down.retained.has_history:
                log.info("%s: %d retained bytes dropped: the node's limit is reached", hop, hop.down.retained.num_bytes)
                hop.down.retained.drop_history()

    def _too_large(self) -> list[Hop]:
        """Sessions that must end: what `_bound_retained` does not give back must not grow without a bound either."""
        return to_give_way(self._hops.values(), _client, lambda hop: hop.held_bytes, self._limits.held_bytes)

    async def stop(self) -> None:
        """End every session, also those that are kept: sequences are freed, and the hops above see their streams end."""
        await self._tasks.stop()
        for sequences in self.kept.all_out():
            await sequences.free()


def _close(hop: Hop) -> Close:
    return Close(session=hop.place.grant.session)


def _client(hop: Hop) -> PeerId:
    return hop.place.grant.client
