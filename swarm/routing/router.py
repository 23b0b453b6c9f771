"""Finds routes for a client.

The directory's snapshot, our measurements and our blame go into the pure `path.best`.

One route, one precision: peers are grouped by compute dtype and quantization, and a route, replacements included, stays in one group.
A record is a claim: no route uses a peer that has not answered a hello of ours.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from protocols.defaults import RECORD_LIFE_S
from protocols.errors import CacheFullError, DrainingError, OverloadedError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId, Span, short_peer
from protocols.inference import Hop, Route
from protocols.records import PeerRecord
from protocols.units import Blocks, Unit
from protocols.weights_id import Weights
from swarm.asking import HELLO_S, Ping
from swarm.clock import SYSTEM, Clock
from swarm.routing import absence, path
from swarm.routing.blame import Blame
from swarm.routing.latency import FORGET_S, Latency
from swarm.routing.offers import UNMEASURED_MS_PER_BLOCK, Offer, Wish, candidates, named, precisions
from swarm.routing.regard import STRANGERS, Regard
from swarm.routing.suspects import Suspects
from swarm.suggestion import USUAL, NodeCommand
from swarm.waiting import Wait

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
"""Pause between two looks at the directory while there is no route."""

FRESH_S = 5.0
"""For so long after a look at the directory, a new session goes by what was seen: reading the DHT takes 10 ms, or a wide area's
round trips. Records are renewed every 20 s and are claims anyway: who has left since does not answer, and is replaced.
A failure ends that."""

GRACE_S = 0.25
"""Seconds that other peers may still take to answer, once those that have answered make a route."""

DISBELIEVED_MS = 1_000.0
"""Least step time assumed, and at random up to twice of it, of all blocks at peers whose word is not believed."""

WARY_S = 60.0
"""Seconds for which, after a peer has failed that never computed for us, every other such peer counts as DISBELIEVED_MS slower.

For as long after a new peer has computed for us, the others count as NEW_MS slower: so a client tries about one new peer a minute.
"""

NEW_MS = 100.0
"""A way over new peers has to be so much faster than one over peers that have computed for us, or these are used."""

BESIDE = 8
"""Peers that are asked beside a session that has its route already, so that later ones know more of them."""


class Records(Protocol):
    """What a snapshot of the directory offers."""

    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...


class DirectoryView(Protocol):
    """What routing needs of the directory."""

    async def snapshot(self, model_name: str) -> Records: ...


class Router:
    """Routes over one model's weights. Blame and latency live as long as the router: share it between a client's sessions."""

    def __init__(
        self,
        directory: DirectoryView,
        ping: Ping,
        weights: Weights,
        num_blocks: int,
        hosting: NodeCommand = USUAL,
        regard: Regard = STRANGERS,
        chance: Callable[[], float] = random.random,
        clock: Clock = SYSTEM,
    ) -> None:
        """hosting: what a message tells people to type where blocks are missing. regard: what is thought of peers beforehand.

        chance: uniform in [0, 1). clock: sessions over this router go by it, too: their times are compared.
        """
        self.weights, self.model, self.num_blocks = weights, weights.model, num_blocks
        self.blame, self.suspects, self.clock = Blame(), Suspects(), clock
        self._directory, self._hosting, self._regard, self._random = directory, hosting, regard, chance
        self._now_s = clock.now_s
        self._latency = Latency(ping, self._is_silent, clock)
        self._looked_s = -FRESH_S
        """When the directory was last read."""
        self._seen: dict[PeerId, tuple[float, PeerRecord]] = {}
        """Records by peer, and when the directory last showed them: right after deaths it may not find all who live."""
        self._proven: dict[PeerId, float] = {}
        """Peers that a reply of a session came through, and when."""
        self._wary_until_s = self._content_until_s = -math.inf
        """Since a new peer failed; since one computed for us (`_caution_ms`)."""
        self._was_served = False
        """Were our very weights served when we looked?"""

    def failed(self, peer: PeerId, cause: SwarmError) -> None:
        """`peer` failed: avoid it for a while."""
        log.info("peer %s failed: %s", short_peer(peer), cause)
        now_s = self._now_s()
        is_first = not self.blame.is_avoided(peer, now_s)  # of the reports of this failure
        if is_first and not self.is_proven(peer) and not isinstance(cause, CacheFullError | OverloadedError | DrainingError):
            self._wary_until_s = now_s + WARY_S
        self.blame.add(peer, cause, now_s)
        self._latency.forget(peer)
        self._proven.pop(peer, None)
        self._looked_s = -FRESH_S  # what was seen may be out of date in more

    def answered(self, route: Route) -> None:
        """A reply that can be used came over `route`: its hops compute. They are asked first, and claims do not beat them."""
        now_s = self._now_s()
        for hop in route:
            self.suspects.clear(hop.peer, now_s)
        if not all(self.is_proven(hop.peer) for hop in route):
            self._content_until_s = now_s + WARY_S
        self._proven = {peer: at_s for peer, at_s in self._proven.items() if now_s - at_s < FORGET_S}
        self._proven |= dict.fromkeys((hop.peer for hop in route), now_s)

    def dispute(self, one: PeerId, other: PeerId) -> None:
        """One of the two is at fault, and nothing shows which: pass both by for a while, if there is a way without them."""
        log.info("peers %s and %s contradict each other", short_peer(one), short_peer(other))
        self.suspects.add(one, other, self._now_s())
        self.suspects.add(other, one, self._now_s())

    def suspect(self, peer: PeerId) -> None:
        """It may be at fault, and nothing shows it: pass it by for a while, if there is a way without it."""
        self.suspects.add(peer, peer, self._now_s())

    def absolve(self, peer: PeerId) -> None:
        """`peer` was said to have failed, and it answers: it may be used, if it is only suspected."""
        self.blame.forgive(peer, self._now_s())

    def expected_ms(self, route: Route, num_steps: float = 1.0) -> float:
        """What the work of so many decode steps takes on this route, as its peers announce it, and the ways between."""
        return sum(num_steps * self._announced_ms(hop) + self._latency.round_trip_ms(hop.peer) / 2 for hop in route)

    def _announced_ms(self, hop: Hop) -> float:
        _, record = self._seen.get(hop.peer, (0.0, None))
        hosted = record.blocks(self.weights) if record else ()
        loads = [one.load for one in hosted if hop.span.is_within(one.span) and one.load.step_ms]
        return loads[0].step_ms * (1 + loads[0].queue) if loads else UNMEASURED_MS_PER_BLOCK * len(hop.span)

    def is_proven(self, peer: PeerId) -> bool:
        """Has it computed for us, or does the user vouch for it?"""
        return peer in self._proven or self._regard.is_trusted(peer)

    def _is_silent(self, record: PeerRecord, cause: SwarmError) -> None:
        """It does not answer. If it never did, that says nothing of what else was seen."""
        if record.peer in self._proven:
            self.failed(record.peer, cause)
        else:
            log.debug("peer %s does not answer: %s", short_peer(record.peer), cause)
            self.blame.add(record.peer, cause, self._now_s())

    def close(self) -> None:
        """End hellos that are under way."""
        self._latency.close()

    async def find(
        self,
        route_timeout_s: float,
        dtype: str | None = None,
        holding: Collection[tuple[PeerId, Span]] | None = None,
        needs: frozenset[Unit] = frozenset(),
        blocks: Span | None = None,
        *,
        avoiding: Collection[PeerId] = (),
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> tuple[Route, str]:
        """A route over all blocks, or over `blocks`, and its compute dtype; looks again for `route_timeout_s`. Looks and hellos are
        part of that; one hello may always end.

        holding: hops that hold this session's K/V already; they are kept unless that is impossible (None: the session only opens).
        dtype: None = any one. needs: units that the first and the last hop host beside their blocks.
        Raises NoRouteError where no live peers cover the model in time, ModelMismatchError where only other weights go by this name; at
        once, unless ours were there before: then they may come back.
        avoiding: peers to use only if no other route exists. If it is not empty, an announced speed counts only for peers that have
        computed for us.
        on_wait: told what is missing, at every look that finds no route.
        """
        is_opening, wish = holding is None, Wish(blocks, needs, holding or (), avoiding)
        since_s = self._now_s()
        deadline_s = since_s + route_timeout_s
        until_s = max(deadline_s, self._now_s() + HELLO_S)
        if holding and (found := await self._choose(self._remembered(dtype), wish, until_s)) is not None:
            return found  # a session waits in the middle of an answer: a look at the directory takes longer than all the rest
        is_fresh = self._now_s() - self._looked_s < FRESH_S
        if is_opening and is_fresh and (found := await self._choose(self._remembered(dtype), wish, until_s)) is not None:
            return found
        while True:
            offers = await self._offers(dtype, is_opening, until_s)
            if (found := await self._choose(offers, wish, until_s)) is not None:
                return found
            offers = self._remembered(dtype)
            if (found := await self._choose(offers, wish, until_s)) is not None:
                return found
            if await self._forgive(offers, until_s):
                continue
            live = self._usable(offers)
            if self._now_s() >= deadline_s:
                cause = f" (last failure: {self.blame.last_cause})" if self.blame.last_cause else ""
                raise absence.no_route(live, wish, self.model, self.num_blocks, route_timeout_s, cause, self._hosting)
            on_wait(absence.wait(live, wish, self.num_blocks, since_s, route_timeout_s))
            await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, deadline_s - self._now_s())))

    # --- what is there

    async def _offers(self, dtype: str | None, is_opening: bool, until_s: float) -> list[Offer]:
        """What the directory shows now, and remembered."""
        try:
            async with asyncio.timeout(max(0.0, until_s - self._now_s())):
                peers = (await self._directory.snapshot(self.model.name)).peers
        except (PeerUnreachableError, TimeoutError) as error:  # our p2pd is being started again, or no peer answers
            log.warning("the directory cannot be read, we look again: %s", error)
            peers = ()
            self._looked_s = -FRESH_S
        else:
            self._looked_s = self._now_s()
        now_s = self._now_s()
        self._seen = {peer: seen for peer, seen in self._seen.items() if now_s - seen[0] < RECORD_LIFE_S}
        self._seen |= {record.peer: (now_s, record) for record in peers}
        offers = named(peers, self.model.name)
        ours = self._ours(offers, None)
        self._was_served = self._was_served or bool(ours)
        if is_opening and offers and not self._was_served:
            raise absence.mismatch(offers, self.weights)
        return self._ours(ours, dtype)

    def _remembered(self, dtype: str | None) -> list[Offer]:
        """What the directory has shown within the life of a record. Who has left since does not answer, and is blamed then."""
        oldest_s = self._now_s() - RECORD_LIFE_S
        return self._ours(named((record for seen_s, record in self._seen.values() if seen_s > oldest_s), self.model.name), dtype)

    def _ours(self, offers: Sequence[Offer], dtype: str | None) -> list[Offer]:
        """Those of our very weights, at peers that may be used."""
        ours = [offer for offer in offers if offer.hosted.weights == self.weights]
        return [o for o in ours if (dtype is None or o.hosted.dtype == dtype) and self._regard.may_be_used(o.record.peer)]

    def _usable(self, offers: Iterable[Offer]) -> list[Offer]:
        now_s = self._now_s()
        return [offer for offer in offers if not self.blame.is_avoided(offer.record.peer, now_s)]

    # --- choosing

    async def _choose(self, offers: list[Offer], wish: Wish, until_s: float) -> tuple[Route, str] | None:
        """The best route over those that have answered; if that is none, or leads over suspects, over those that answer now, too."""
        due = self._in_order({offer.record.peer: offer.record for offer in self._usable(offers)}.values(), wish)
        held = {record.peer for record in due if wish.holds(record.peer)}
        found = self._best(offers, wish)
        if found is not None and not held and self._is_clean(found[0], wish):
            self._latency.look_around(due, BESIDE)
            return found
        loop = asyncio.get_running_loop()
        if found is not None:  # there is a way already: one round for a better one
            until_s = min(until_s, self._now_s() + HELLO_S)
        is_enough = False
        try:
            async with (
                asyncio.timeout(max(0.0, until_s - self._now_s())) as limit,
                aclosing(self._latency.measure(due)) as replies,
            ):
                async for record, error in replies:
                    held.discard(record.peer)
                    is_news = error is None or wish.holds(record.peer)
                    if is_news and not is_enough and not held and (now := self._best(offers, wish)) is not None:
                        is_enough = self._is_clean(now[0], wish)
                        grace_s = GRACE_S if is_enough else HELLO_S
                        limit.reschedule(min(limit.when() or 0.0, loop.time() + grace_s))
        except TimeoutError:
            pass
        return self._best(offers, wish)

    def _is_clean(self, route: Route, wish: Wish) -> bool:
        """Does it lead around suspects, and around those that should be avoided?"""
        now_s = self._now_s()
        return not any(hop.peer in wish.avoiding or self.suspects.strikes(hop.peer, now_s) for hop in route)

    def _in_order(self, records: Iterable[PeerRecord], wish: Wish) -> list[PeerRecord]:
        """Those that have not answered lately, in the order in which to ask them: who holds the session, who has computed for us, who
        has answered before, and the others at random: a PeerID that sorts first costs nothing to make."""
        due = [record for record in records if not self._latency.has_answered(record.peer)]
        random.shuffle(due)
        return sorted(
            due,
            key=lambda one: (
                not wish.holds(one.peer),
                not self.is_proven(one.peer),
                not (self._latency.is_remembered(one.peer) or self._regard.has_met(one.peer)),
            ),
        )

    def _best(self, offers: list[Offer], wish: Wish) -> tuple[Route, str] | None:
        """The best route over those that have answered, and its dtype."""
        there = [offer for offer in self._usable(offers) if self._latency.has_answered(offer.record.peer)]
        records = {offer.record.peer: offer.record for offer in there}
        blocks = wish.blocks or Span(0, self.num_blocks)
        proven = {peer for peer in records if self.is_proven(peer)}
        hosted = {(offer.record.peer, offer.hosted.span) for offer in offers}
        avoided, alike = Counter(span for peer, span in hosted if peer in wish.avoiding), Counter[PeerId]()
        for peer, span in hosted:
            alike[peer] = max(alike[peer], avoided[span])
        for precision in precisions(there):
            group = [offer for offer in there if offer.hosted.precision == precision]
            chosen = path.best(
                [self._doubted(one, wish, proven, alike[one.peer]) for one in candidates(group, wish, self.num_blocks, proven)],
                blocks.stop,
                lambda a, b: self._latency.between_ms(records[a] if a else None, records[b] if b else None),
                wish.needs,
                blocks.start,
            )
            if chosen is not None:
                return tuple(
                    Hop(c.peer, records[c.peer].addresses, records[c.peer].certificate, Blocks.of(c.span)) for c in chosen
                ), precision[0]
        return None

    def _doubted(self, candidate: path.Candidate, wish: Wish, proven: Collection[PeerId], alike: int) -> path.Candidate:
        """The same with the disputes that it is suspected of, and without its word if it is not believed.

        alike: peers to be avoided that host the blocks of one of its units. Made-up peers tend to claim the same, so it is tried later.
        """
        peer, now_s = candidate.peer, self._now_s()
        doubts = self.suspects.strikes(peer, now_s) + (peer in wish.avoiding)
        step_ms, share = candidate.step_ms, len(candidate.span) / self.num_blocks
        if peer not in proven and not candidate.is_holding:
            if wish.avoiding:
                step_ms = DISBELIEVED_MS * share * (1 + self._random() + alike)
            else:
                step_ms += self._caution_ms(now_s) * share
        return replace(candidate, doubts=doubts, step_ms=step_ms)

    def _caution_ms(self, now_s: float) -> float:
        """Milliseconds by which all blocks count as slower at peers that never computed for us."""
        if now_s < self._wary_until_s:
            return DISBELIEVED_MS
        return NEW_MS if now_s < self._content_until_s else 0.0

    async def _forgive(self, offers: list[Offer], until_s: float) -> bool:
        """There is no way without them: ask those that we avoid whether they are back. True where one is."""
        now_s = self._now_s()
        avoided = {o.record.peer: o.record for o in offers if self.blame.is_avoided(o.record.peer, now_s)}
        askable = [record for peer, record in avoided.items() if self.blame.can_be_asked_again(peer, now_s)]
        for record in askable:
            self._latency.forget(record.peer)  # an answer of before counts no more
        is_back = False
        try:
            async with (
                asyncio.timeout(max(0.0, until_s - now_s)) as limit,
                aclosing(self._latency.measure(self._in_order(askable, NOTHING))) as replies,
            ):
                async for record, error in replies:
                    if error is None:
                        self.blame.forgive(record.peer, self._now_s())
                        limit.reschedule(min(limit.when() or 0.0, asyncio.get_running_loop().time() + GRACE_S))
                        is_back = True
        except TimeoutError:
            pass
        return is_back


NOTHING = Wish(None, frozenset(), ())
"""No session, all blocks."""
