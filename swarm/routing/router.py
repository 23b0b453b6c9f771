"""Finds routes for a client: the directory's snapshot, our measurements and our blame go into the pure `path.best`.

One route, one precision: peers are grouped by compute dtype and quantization, and a route, replacements included, stays in one group.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from protocols.defaults import RECORD_LIFE_S
from protocols.errors import ModelMismatchError, NoRouteError, PeerUnreachableError, SwarmError
from protocols.ids import ModelId, PeerId, Span, short_peer
from protocols.inference import Hop, Route
from protocols.records import PeerRecord, ServedSpan
from swarm import waiting
from swarm.routing import path
from swarm.routing.blame import Blame
from swarm.routing.latency import Latency, Ping
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

UNMEASURED_MS_PER_BLOCK = 2.0
"""Assumed step time of a node that has not served yet."""

DISBELIEVED_MS = 1_000.0
"""Least step time assumed, and at random up to twice of it, of a peer whose word is not believed."""


class Records(Protocol):
    """What a snapshot of the directory offers."""

    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...


class DirectoryView(Protocol):
    """What routing needs of the directory."""

    async def snapshot(self, model_name: str) -> Records: ...


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a route has to be like."""

    blocks: Span | None
    """None = all of the model, by whole spans; else these, and a hop may be a part of what its node hosts."""
    thin: bool
    holding: Collection[tuple[PeerId, Span]]
    avoiding: Collection[PeerId] = ()
    """Pass by these if there is a way without them, and believe nobody's announced speed who has not answered us yet."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """One span that one peer serves, of our model and in one precision."""

    record: PeerRecord
    served: ServedSpan


class Router:
    """Routes over one model. Blame and latency live as long as the router: share it between a client's sessions."""

    def __init__(
        self,
        directory: DirectoryView,
        ping: Ping,
        model: ModelId,
        num_blocks: int,
        hosting: NodeCommand = USUAL,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """hosting: what a message tells people to type where blocks are missing. chance: uniform in [0, 1)."""
        self.model, self.num_blocks = model, num_blocks
        self.blame, self.suspects = Blame(), Suspects()
        self._proven: set[PeerId] = set()
        """Peers through which an answer of this model has come."""
        self._directory, self._hosting, self._random = directory, hosting, chance
        self._latency = Latency(ping)
        self._looked_s = -FRESH_S
        """When the directory was last read, on the monotonic clock."""
        self._seen: dict[PeerId, tuple[float, PeerRecord]] = {}
        """Records by peer, and when the directory last showed them: right after deaths it may not find all who live."""

    def failed(self, peer: PeerId, cause: SwarmError) -> None:
        """`peer` failed: avoid it for a while."""
        log.info("peer %s failed: %s", short_peer(peer), cause)
        self.blame.add(peer, cause, time.monotonic())
        self._latency.forget(peer)
        self._looked_s = -FRESH_S  # what was seen may be out of date in more

    def dispute(self, one: PeerId, other: PeerId) -> None:
        """One of the two is at fault, and nothing shows which: pass both by for a while, if there is a way without them."""
        log.info("peers %s and %s contradict each other", short_peer(one), short_peer(other))
        self.suspects.add(one, other, time.monotonic())
        self.suspects.add(other, one, time.monotonic())

    def absolve(self, peer: PeerId) -> None:
        """`peer` was said to have failed, and it answers: it may be used, if it is only suspected."""
        self.blame.forgive(peer, time.monotonic())

    def answered(self, route: Route) -> None:
        """An answer came through all of these."""
        for hop in route:
            self._proven.add(hop.peer)
            self.suspects.clear(hop.peer, time.monotonic())

    def expected_ms(self, route: Route, num_steps: float = 1.0) -> float:
        """What the work of so many decode steps takes on this route, as its peers announce it, and the ways between."""
        return sum(num_steps * self._announced_ms(hop) + self._latency.round_trip_ms(hop.peer) / 2 for hop in route)

    def _announced_ms(self, hop: Hop) -> float:
        _, record = self._seen.get(hop.peer, (0.0, None))
        if record is None or not record.step_ms:
            return UNMEASURED_MS_PER_BLOCK * len(hop.span)
        return record.step_ms * (1 + record.queue)

    async def find(
        self,
        patience_s: float,
        dtype: str | None = None,
        holding: Collection[tuple[PeerId, Span]] | None = None,
        thin: bool = False,
        blocks: Span | None = None,
        *,
        avoiding: Collection[PeerId] = (),
        since_s: float | None = None,
        on_wait: Callable[[Wait], None] = lambda wait: None,
    ) -> tuple[Route, str]:
        """A route over all blocks, or over `blocks`, and its compute dtype, looking again until `patience_s` seconds after `since_s`
        (None = now).

        holding: hops that hold this session's K/V already; they are kept unless that is impossible (None: the session only opens).
        dtype: None = any one. thin: first and last hop host the model's ends. Raises NoRouteError where no live peers cover the model
        in time, ModelMismatchError where only other weights go by this name; at once, but in the middle of a session: then ours were
        there, and may come back.
        avoiding: peers that are used only if there is no other way; then nobody's announced speed counts who has not answered before.
        on_wait: told what is missing, at every look that finds no route.
        """
        is_opening, wish = holding is None, _Wish(blocks, thin, holding or (), avoiding)
        since_s = time.monotonic() if since_s is None else since_s
        deadline_s = since_s + patience_s
        if holding and (found := await self._choose(self._remembered(dtype), wish)) is not None:
            return found  # somebody waits in the middle of an answer: a look at the directory takes longer than all the rest
        is_fresh = time.monotonic() - self._looked_s < FRESH_S
        if is_opening and is_fresh and (found := await self._choose(self._remembered(dtype), wish)) is not None:
            return found
        while True:
            offers = await self._offers(dtype, is_opening)
            if (found := await self._choose(offers, wish)) is not None:
                return found
            offers = self._remembered(dtype)
            if (found := await self._choose(offers, wish)) is not None:
                return found
            if await self._forgive(offers):
                continue
            if time.monotonic() >= deadline_s:
                raise self._no_route(offers, patience_s, wish)
            on_wait(self._missing(offers, since_s, patience_s, wish))
            await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, deadline_s - time.monotonic())))

    async def _offers(self, dtype: str | None, is_opening: bool) -> list[_Offer]:
        """What the directory shows now, and remembered."""
        try:
            peers = (await self._directory.snapshot(self.model.name)).peers
        except PeerUnreachableError as error:  # our p2pd is being started again
            log.warning("the directory cannot be read, we look again: %s", error)
            peers = ()
            self._looked_s = -FRESH_S
        else:
            self._looked_s = time.monotonic()
        now_s = time.monotonic()
        self._seen = {peer: seen for peer, seen in self._seen.items() if now_s - seen[0] < RECORD_LIFE_S}
        self._seen |= {record.peer: (now_s, record) for record in peers}
        named = _named(peers, self.model.name)
        if is_opening and named and not any(offer.served.model.digest == self.model.digest for offer in named):
            raise self._mismatch(named)
        return self._ours(named, dtype)

    def _remembered(self, dtype: str | None) -> list[_Offer]:
        """What the directory has shown within the life of a record. Who has left since does not answer, and is blamed then."""
        oldest_s = time.monotonic() - RECORD_LIFE_S
        return self._ours(_named([record for seen_s, record in self._seen.values() if seen_s > oldest_s], self.model.name), dtype)

    def _ours(self, named: Sequence[_Offer], dtype: str | None) -> list[_Offer]:
        ours = [offer for offer in named if offer.served.model.digest == self.model.digest]
        return [offer for offer in ours if dtype is None or offer.served.dtype == dtype]

    async def _choose(self, offers: list[_Offer], wish: _Wish) -> tuple[Route, str] | None:
        usable = [offer for offer in offers if not self.blame.is_avoided(offer.record.peer, time.monotonic())]
        dead = await self._latency.measure({offer.record.peer: offer.record for offer in usable}.values())
        for peer, cause in dead.items():
            self.failed(peer, cause)
        usable = [offer for offer in usable if offer.record.peer not in dead]
        for precision in sorted(
            {(offer.served.dtype, offer.served.quantization) for offer in usable}, key=lambda p: p[0] != "float32"
        ):
            group = [offer for offer in usable if (offer.served.dtype, offer.served.quantization) == precision]
            if (route := self._best(group, wish)) is not None:
                return route, precision[0]
        return None

    def _best(self, offers: list[_Offer], wish: _Wish) -> Route | None:
        records = {offer.record.peer: offer.record for offer in offers}
        blocks = wish.blocks or Span(0, self.num_blocks)
        chosen = path.best(
            [self._candidate(offer, part, wish) for offer, part in self._parts(offers, wish)],
            blocks.stop,
            lambda a, b: self._latency.between_ms(records[a] if a else None, records[b] if b else None),
            wish.thin,
            blocks.start,
        )
        if chosen is None:
            return None
        return tuple(Hop(c.peer, records[c.peer].addresses, records[c.peer].certificate, c.span) for c in chosen)

    def _candidate(self, offer: _Offer, part: Span, wish: _Wish) -> path.Candidate:
        peer = offer.record.peer
        candidate = _candidate(offer, part, (peer, part) in wish.holding)
        doubts = self.suspects.strikes(peer, time.monotonic()) + (peer in wish.avoiding)
        if wish.avoiding and peer not in self._proven and not candidate.is_holding:
            return replace(candidate, doubts=doubts, step_ms=DISBELIEVED_MS * (1 + self._random()))
        return replace(candidate, doubts=doubts) if doubts else candidate

    def _parts(self, offers: list[_Offer], wish: _Wish) -> list[tuple[_Offer, Span]]:
        """What each offer could be in the route: its whole span, or a part of it where only some blocks are wished for."""
        if wish.blocks is None:
            return [(offer, offer.served.span) for offer in offers]
        offers = [offer for offer in offers if offer.served.span.stop <= self.num_blocks]
        kept = {edge for _, span in wish.holding for edge in (span.start, span.stop)}
        edges = kept | {edge for offer in offers for edge in (offer.served.span.start, offer.served.span.stop)}
        return [(offer, part) for offer in offers for part in path.parts(offer.served.span, wish.blocks, edges, kept)]

    async def _forgive(self, offers: list[_Offer]) -> bool:
        """There is no way without them: ask those that we avoid whether they are back. True where one is."""
        now_s = time.monotonic()
        avoided = {o.record.peer: o.record for o in offers if self.blame.is_avoided(o.record.peer, now_s)}
        askable = [record for peer, record in avoided.items() if self.blame.can_be_asked_again(peer, now_s)]
        answers = await asyncio.gather(*(self._latency.probe(record) for record in askable))
        back = [record.peer for record, error in zip(askable, answers, strict=True) if error is None]
        for peer in back:
            self.blame.forgive(peer, time.monotonic())
        return bool(back)

    async def alive(self, route: Route) -> list[SwarmError | None]:
        """Ask every hop of a route for a sign of life: None, or why there was none."""
        return await asyncio.gather(*(self._latency.probe(_as_record(hop)) for hop in route))

    def _mismatch(self, named: list[_Offer]) -> ModelMismatchError:
        others = sorted({offer.served.model.digest[:12] for offer in named})
        return ModelMismatchError(
            f"the swarm serves {self.model.name} with other weights (digest {', '.join(others)}) than yours ({self.model.digest[:12]}): "
            "use the same checkpoint as its nodes, or host yours under another --model-name"
        )

    def _live(self, offers: list[_Offer], wish: _Wish) -> tuple[list[ServedSpan], list[Span]]:
        """What is served by those who have not failed, and the wished blocks that are not."""
        now_s = time.monotonic()
        live = [offer.served for offer in offers if not self.blame.is_avoided(offer.record.peer, now_s)]
        spans = {served.span for served in live}
        return live, path.unhosted(spans, wish.blocks) if wish.blocks else path.missing(spans, self.num_blocks)

    def _missing(self, offers: list[_Offer], since_s: float, patience_s: float, wish: _Wish) -> Wait:
        live, gaps = self._live(offers, wish)
        if wish.thin and live and not gaps:
            return waiting.missing_ends(since_s, patience_s)
        return waiting.missing(gaps, since_s, patience_s)

    def _no_route(self, offers: list[_Offer], patience_s: float, wish: _Wish) -> NoRouteError:
        live, gaps = self._live(offers, wish)
        cause = f" (last failure: {self.blame.last_cause})" if self.blame.last_cause else ""
        if wish.thin and live and not gaps:
            return self._no_ends(live, patience_s, cause)
        gaps = gaps or [wish.blocks or Span(0, self.num_blocks)]
        return NoRouteError(
            f"no live peers cover blocks {', '.join(map(str, gaps))} of {self.model.name} after {patience_s:.0f} s{cause}; "
            f"wait for a node to join, or host them: {self._hosting.text(self.model.name, '--blocks', str(gaps[0]))}"
        )

    def _no_ends(self, live: Sequence[ServedSpan], patience_s: float, cause: str) -> NoRouteError:
        """The blocks are there, but a thin client needs more."""
        spans = [served.span for served in live]
        edges = {0: [span for span in spans if span.start == 0],
                 self.num_blocks - 1: [span for span in spans if span.stop == self.num_blocks]}  # fmt: skip
        hosted = {o.span for o in live if o.ends}
        lacking = [block for block, there in edges.items() if not hosted.intersection(there)]
        where = " and ".join(f"block {block}" for block in lacking or edges)
        span = min(edges[(lacking or [0])[0]])
        return NoRouteError(
            f"no node hosts the ends of {self.model.name} with {where} after {patience_s:.0f} s{cause}, and a thin client needs them; "
            f"ask without --thin, or start one with --ends: {self._hosting.text(self.model.name, '--ends', '--blocks', str(span))}"
        )


def _named(peers: Sequence[PeerRecord], name: str) -> list[_Offer]:
    """What is served now under a name."""
    serving = [_Offer(record, served) for record in peers for served in record.spans if record.state_of(served) == "serving"]
    return [offer for offer in serving if offer.served.model.name == name]


def _candidate(offer: _Offer, part: Span, is_holding: bool) -> path.Candidate:
    span, record = offer.served.span, offer.record
    step_ms = record.step_ms or UNMEASURED_MS_PER_BLOCK * len(span)
    return path.Candidate(
        peer=record.peer,
        span=part,
        step_ms=step_ms * (1 + record.queue) * len(part) / len(span),
        free_tokens=record.free_tokens,
        ends=offer.served.ends,
        is_holding=is_holding,
    )


def _as_record(hop: Hop) -> PeerRecord:
    return PeerRecord(peer=hop.peer, addresses=hop.addresses, certificate=hop.certificate)
