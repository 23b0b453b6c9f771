"""Decides which peers a loss or a silence counts against.

An accused hop counts as failed at once. It is then asked; if it answers, it is forgiven, and accuser and accused are suspected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from protocols.errors import DeadlineError, NonsenseError
from protocols.ids import PeerId, short_peer
from protocols.inference import Route
from swarm.inference.client import suspicion
from swarm.inference.client.leg import Leg, Loss
from swarm.inference.client.suspicion import Kind, Verdict
from swarm.routing.experience import Experience
from swarm.tasks import Tasks

log = logging.getLogger(__name__)

INQUIRY_S = 1.0
"""Longest wait, in seconds, for the answer of an accused hop, if another accusation comes before a reply."""


class Accusations:
    """Those of one session."""

    def __init__(self, experience: Experience, now_s: Callable[[], float], tasks: Tasks) -> None:
        """tasks: own the questions to hops that others say are lost."""
        self._experience, self._now_s, self._tasks = experience, now_s, tasks
        self._inquiries: set[asyncio.Task[None]] = set()
        """Those questions, under way."""

    def by_loss(self, leg: Leg, loss: Loss) -> None:
        """A hop of a leg is lost: it has failed, or it and others are suspected."""
        peer, now_s = leg.route[loss.index].peer, self._now_s()
        if isinstance(loss.cause, NonsenseError) and loss.index > 0:
            self._experience.dispute(peer, leg.route[loss.index - 1].peer)
        elif loss.others:
            for place in loss.others:
                self._experience.dispute(peer, leg.route[place].peer)
        else:
            was_accused = self._experience.suspects.strikes(peer, now_s) > 0
            self._experience.failed(peer, loss.cause)
            if loss.is_told and not was_accused:
                inquiry = self._tasks.keep(self._ask_the_accused(leg, leg.route, loss), f"inquiry of {leg}")
                self._inquiries.add(inquiry)
                inquiry.add_done_callback(self._inquiries.discard)

    async def _ask_the_accused(self, leg: Leg, route: Route, loss: Loss) -> None:
        """A hop above says that another is lost. If that one answers, and has not given up, it is one word against the other."""
        words = await leg.ask(loss.index + 1, route)
        if suspicion.has_said_it_itself(words[loss.index]):
            return
        accused = route[loss.index].peer
        log.info("%s: %s answers, though a hop above it says that it is lost", leg, short_peer(accused))
        self._experience.absolve(accused)
        for place in suspicion.accusers(words, loss.index):
            self._experience.dispute(route[place].peer, accused)

    async def settle(self) -> None:
        """Hear what those say who are accused now, for INQUIRY_S at most."""
        if self._inquiries:
            await asyncio.wait(self._inquiries, timeout=INQUIRY_S)

    def by_silence(self, route: Route, verdict: Verdict) -> None:
        """Another leg has answered before this route did."""
        peers = [route[place].peer for place in verdict.places]
        if verdict.kind is Kind.BUSY:
            self._experience.suspect(peers[0])
        elif verdict.kind is Kind.TORN:
            self._experience.dispute(*peers)
        else:
            self._experience.failed(peers[0], DeadlineError(f"no answer comes through it: it {verdict.kind.value}"))

    def acquit(self, peer: PeerId) -> None:
        """It has gone on to a newer version, which is no failure."""
        self._experience.absolve(peer)

    def soften(self, refusers: Iterable[PeerId]) -> None:
        """The request may be at fault: peers that refused it may be used for others, if there is no other peer."""
        for peer in refusers:
            self._experience.absolve(peer)
            self._experience.suspect(peer)
