"""Finds routes for a client.

What the directory shows (`shown.py`) and what we have seen of peers (`experience.py`) go into the pure `choice.best`.

One route, one precision: peers are grouped by compute dtype and quantization, and a route, replacements included, stays in one group.
A record is a claim: no route uses a peer that has not answered a hello of ours.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection
from contextlib import aclosing
from dataclasses import dataclass

from protocols.ids import PeerId, Span
from protocols.inference import Route
from protocols.units import Unit
from protocols.weights_id import Weights
from swarm.asking import HELLO_S, Ping
from swarm.clock import SYSTEM, Clock
from swarm.routing import absence, choice, versions
from swarm.routing.experience import Experience
from swarm.routing.offers import Offer, Wish
from swarm.routing.regard import STRANGERS, Regard
from swarm.routing.shown import DirectoryView, Shown
from swarm.suggestion import USUAL, NodeCommand
from swarm.waiting import Wait

LOOK_AGAIN_S = 0.5
"""Pause between two looks at the directory while there is no route."""

GRACE_S = 0.25
"""Seconds that other peers may still take to answer, once those that have answered make a route."""

BESIDE = 8
"""Peers that are asked beside a session that has its route already, so that later ones know more of them."""


GONE_S = 3.0
"""Seconds without a live route of a session's version, if a newer version has one, until it counts as served no more: a peer that does not
answer may come back within them."""


@dataclass(frozen=True, slots=True)
class Found:
    """A route, and what it computes with."""

    weights: Weights
    route: Route
    dtype: str


class Router:
    """Routes over one model's weights, or over all versions of a model in training.

    Its experience of peers lives as long as the router: share it between a client's sessions.
    """

    def __init__(
        self,
        directory: DirectoryView,
        ping: Ping,
        weights: Weights,
        num_blocks: int,
        hosting: NodeCommand = USUAL,
        regard: Regard = STRANGERS,
        clock: Clock = SYSTEM,
        takes_newest: bool = False,
    ) -> None:
        """takes_newest: the model is in training; `find_newest` chooses a session's version, and `weights` are those of version 0.

        hosting: what a message tells people to type where blocks are missing. regard: what is thought of peers beforehand.

        clock: sessions over this router go by it, too: their times are compared.
        """
        self.weights, self.model, self.num_blocks, self.clock = weights, weights.model, num_blocks, clock
        self._hosting, self._now_s = hosting, clock.now_s
        self.takes_newest = takes_newest
        self._shown = Shown(directory, weights, regard.may_be_used, clock, all_versions=takes_newest)
        self.experience = Experience(ping, regard, clock, on_failure=self._shown.outdate)

    def expected_ms(self, route: Route, num_steps: float = 1.0) -> float:
        """What the work of so many decode steps takes on this route, as its peers announce it, and the ways between."""
        ways_ms = sum(self.experience.latency.round_trip_ms(hop.peer) / 2 for hop in route)
        return num_steps * sum(map(self._shown.announced_ms, route)) + ways_ms

    def close(self) -> None:
        """End hellos that are under way."""
        self.experience.latency.close()

    async def find(
        self,
        route_timeout_s: float,
        dtype: str | None = None,
        holding: Collection[tuple[PeerId, Span]] | None = None,
        needs: frozenset[Unit] = frozenset(),
        blocks: Span | None = None,
        *,
        weights: Weights | None = None,
        avoiding: Collection[PeerId] = (),
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> tuple[Route, str]:
        """A route over all blocks, or over `blocks`, and its compute dtype; looks again for `route_timeout_s`. Looks and hellos are
        part of that; one hello may always end.

        holding: hops that hold this session's K/V already; they are kept unless that is impossible (None: the session only opens).
        dtype: None = any one. needs: units that the first and the last hop host beside their blocks.
        weights: the version, of a model in training; None = the router's. Raises VersionGoneError if a newer one has replaced it.
        Raises NoRouteError where no live peers cover the model in time, ModelMismatchError where only other weights go by this name; at
        once, unless ours were there before: then they may come back.
        avoiding: peers to use only if no other route exists. If it is not empty, an announced speed counts only for peers that have
        computed for us.
        on_wait: told what is missing, at every look that finds no route.
        """
        wish = Wish(blocks, needs, holding or (), avoiding)
        found = await self._find(route_timeout_s, dtype, wish, holding is None, weights or self.weights, on_wait)
        return found.route, found.dtype

    async def find_newest(
        self,
        route_timeout_s: float,
        dtype: str | None = None,
        needs: frozenset[Unit] = frozenset(),
        blocks: Span | None = None,
        *,
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> Found:
        """A route of the newest version that live peers have a complete route of; otherwise as `find`."""
        return await self._find(route_timeout_s, dtype, Wish(blocks, needs, ()), True, None, on_wait)

    async def _find(
        self,
        route_timeout_s: float,
        dtype: str | None,
        wish: Wish,
        is_opening: bool,
        weights: Weights | None,
        on_wait: Callable[[Wait], None],
    ) -> Found:
        """weights: None = the newest that have a route."""
        since_s = self._now_s()
        deadline_s = since_s + route_timeout_s
        until_s = max(deadline_s, self._now_s() + HELLO_S)
        # in the middle of an answer, a look at the directory takes longer than all the rest
        goes_by_memory = wish.holding or (is_opening and self._shown.is_fresh)
        if goes_by_memory and (found := await self._choose_of(weights, self._shown.remembered(dtype), wish, until_s)) is not None:
            return found
        while True:
            offers = await self._shown.look(dtype, is_opening, until_s)
            if (found := await self._choose_of(weights, offers, wish, until_s)) is not None:
                return found
            offers = self._shown.remembered(dtype)
            if (found := await self._choose_of(weights, offers, wish, until_s)) is not None:
                return found
            if await self._forgive(offers, until_s):
                continue
            live = [offer for offer in offers if not self.experience.is_avoided(offer.record.peer)]
            if weights is not None:
                self._check_served(weights, offers, live, wish, is_late=self._now_s() - since_s >= min(GONE_S, route_timeout_s))
            live = versions.fullest(live, wish, self.num_blocks) if weights is None else versions.of(live, weights)
            if self._now_s() >= deadline_s:
                last = self.experience.blame.last_cause
                cause = f" (last failure: {last})" if last else ""
                raise absence.no_route(live, wish, self.model, self.num_blocks, route_timeout_s, cause, self._hosting)
            on_wait(absence.wait(live, wish, self.num_blocks, since_s, route_timeout_s))
            await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, deadline_s - self._now_s())))

    async def _choose_of(self, weights: Weights | None, offers: list[Offer], wish: Wish, until_s: float) -> Found | None:
        """A route of these weights; None = of the newest version that has one."""
        wanted = versions.complete(offers, wish, self.num_blocks) if weights is None else [weights]
        for one in wanted:
            if (chosen := await self._choose(versions.of(offers, one), wish, until_s)) is not None:
                return Found(one, *chosen)
        return None

    def _check_served(self, weights: Weights, offers: list[Offer], live: list[Offer], wish: Wish, *, is_late: bool) -> None:
        """VersionGoneError if a newer version has a complete route and these weights have none: by what all have announced, or, once it
        is late, by those that answer."""
        if self.takes_newest:
            for seen in (offers, live) if is_late else (offers,):
                if (now := versions.newer(weights, seen, wish, self.num_blocks)) is not None:
                    raise absence.gone(weights, now)

    async def _choose(self, offers: list[Offer], wish: Wish, until_s: float) -> tuple[Route, str] | None:
        """The best route over those that have answered; if that is none, or leads over suspects, over those that answer now, too."""
        records = {offer.record.peer: offer.record for offer in offers}
        holders = {peer for peer in records if wish.holds(peer)}
        due = self.experience.order((one for one in records.values() if not self.experience.is_avoided(one.peer)), holders)
        held = {record.peer for record in due if record.peer in holders}
        found = self._best(offers, wish)
        if found is not None and not held and self._is_clean(found[0], wish):
            self.experience.latency.look_around(due, BESIDE)
            return found
        loop = asyncio.get_running_loop()
        if found is not None:  # there is a way already: one round for a better one
            until_s = min(until_s, self._now_s() + HELLO_S)
        is_enough = False
        try:
            async with (
                asyncio.timeout(max(0.0, until_s - self._now_s())) as limit,
                aclosing(self.experience.latency.measure(due)) as replies,
            ):
                async for record, error in replies:
                    held.discard(record.peer)
                    is_news = error is None or record.peer in holders
                    if is_news and not is_enough and not held and (now := self._best(offers, wish)) is not None:
                        is_enough = self._is_clean(now[0], wish)
                        grace_s = GRACE_S if is_enough else HELLO_S
                        limit.reschedule(min(limit.when() or 0.0, loop.time() + grace_s))
        except TimeoutError:
            pass
        return self._best(offers, wish)

    def _is_clean(self, route: Route, wish: Wish) -> bool:
        """Does it lead around suspects, and around those that should be avoided?"""
        return not any(hop.peer in wish.avoiding or self.experience.is_suspected(hop.peer) for hop in route)

    def _best(self, offers: list[Offer], wish: Wish) -> tuple[Route, str] | None:
        known = self.experience.known({offer.record.peer for offer in offers})
        return choice.best(offers, wish, self.num_blocks, known, random.random)

    async def _forgive(self, offers: list[Offer], until_s: float) -> bool:
        """There is no way without them: ask those that we avoid whether they are back. True where one is."""
        now_s = self._now_s()
        avoided = {o.record.peer: o.record for o in offers if self.experience.blame.is_avoided(o.record.peer, now_s)}
        moved = self._shown.take_moved(avoided.keys())
        may_ask = self.experience.blame.can_be_asked_again
        askable = [record for peer, record in avoided.items() if may_ask(peer, now_s, has_moved=peer in moved)]
        for record in askable:
            self.experience.latency.forget(record.peer)  # an answer of before counts no more
        is_back = False
        try:
            async with (
                asyncio.timeout(max(0.0, until_s - now_s)) as limit,
                aclosing(self.experience.latency.measure(self.experience.order(askable, ()))) as replies,
            ):
                async for record, error in replies:
                    if error is None:
                        self.experience.blame.forgive(record.peer, self._now_s())
                        limit.reschedule(min(limit.when() or 0.0, asyncio.get_running_loop().time() + GRACE_S))
                        is_back = True
        except TimeoutError:
            pass
        return is_back
