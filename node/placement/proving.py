"""Tests whether replicas of our blocks really compute.

A small session over each of them is compared with our own engine.

Only a node that hosts the same blocks can tell, so each node tests those that it would leave its blocks to, and remembers it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass

import torch
from torch import Tensor

from node.serving.host import Host
from node.serving.session_sequences import SessionSequences
from protocols import compression
from protocols.errors import SwarmError
from protocols.identity import Identity
from protocols.ids import PeerId, SessionId, Span, short_peer
from protocols.records import PeerRecord
from swarm.asking import Ping, answers
from swarm.clock import SYSTEM, Clock
from swarm.inference.client.session import Session, SessionConfig
from swarm.placement.members import Member
from swarm.routing.router import Router
from swarm.rpc.pool import ChannelPool
from swarm.streams.links import Links

log = logging.getLogger(__name__)

NUM_TOKENS = 4
"""Tokens of a probe."""

PROBE_S, ROUTE_TIMEOUT_S = 8.0, 2.0
"""Seconds for one probe, with the engine of a part that the other may have to make; and for another try if its stream is lost."""

AT_ONCE = 4
MAX_PROBES = 32
"""Peers that are tested in one look."""

PROVEN_S, FAILED_S = 300.0, 120.0
"""Seconds for which a result is remembered."""

NEAR = 0.1
"""Difference, as a share of what the blocks change, up to which two outputs are the same; rounding of the format comes on top."""


@dataclass(frozen=True, slots=True)
class _Only:
    """A directory of one peer."""

    peers: tuple[PeerRecord, ...]

    async def snapshot(self, model_name: str) -> _Only:
        return self


class Prover:
    """Tests replicas of one node's blocks."""

    def __init__(self, identity: Identity, pool: ChannelPool, ping: Ping, clock: Clock = SYSTEM) -> None:
        self._identity, self._links, self._ping, self._clock = identity, Links(pool), ping, clock
        self._results: dict[tuple[PeerId, Span], tuple[float, bool]] = {}
        """When the probe of these blocks at this peer ended, and how."""

    def proven(self, span: Span, others: Iterable[Member]) -> set[PeerId]:
        """Those of `others` that have computed the blocks that they share with `span`."""
        self._forget()
        return {other.peer for other in others if (part := shared(span, other.span)) and self._is_good(other.peer, part)}

    def _is_good(self, peer: PeerId, part: Span) -> bool:
        found = self._results.get((peer, part))
        return found is not None and found[1]

    def _forget(self) -> None:
        now_s = self._clock.now_s()
        self._results = {
            key: (at_s, is_good)
            for key, (at_s, is_good) in self._results.items()
            if now_s - at_s < (PROVEN_S if is_good else FAILED_S)
        }

    async def check(self, host: Host, records: Iterable[PeerRecord], others: Iterable[Member]) -> None:
        """Test those of `others` that share blocks with `host`, if that was not done lately; up to MAX_PROBES of them, by lot."""
        self._forget()
        by_peer = {record.peer: record for record in records}
        due: list[tuple[PeerRecord, Span]] = []
        for other in others:
            part = shared(host.served.span, other.span)
            if part is not None and other.peer in by_peer and (other.peer, part) not in self._results:
                due.append((by_peer[other.peer], part))
        chosen = random.sample(due, min(MAX_PROBES, len(due)))

        async def ask(one: tuple[PeerRecord, Span]) -> bool:
            return await self._computes(host, *one)

        try:
            async with aclosing(answers(chosen, ask, AT_ONCE)) as results:
                async for (record, part), is_good in results:
                    self._results[record.peer, part] = self._clock.now_s(), is_good
        except (SwarmError, TimeoutError) as error:
            log.warning("replicas of blocks %s are not tested now, since ours fail: %s", host.served.span, error or "no answer")

    async def _computes(self, host: Host, record: PeerRecord, part: Span) -> bool:
        """Does the other compute what we do? SwarmError or TimeoutError if we ourselves do not: that says nothing of the other."""
        engine = host.runner.engine
        hidden_TH = torch.randn(NUM_TOKENS, engine.hidden_size).to(engine.dtype)
        async with asyncio.timeout(PROBE_S):
            ours_TH = await self._ours(host, part, hidden_TH)
        try:
            async with asyncio.timeout(PROBE_S):
                theirs_TH = await self._theirs(host, record, part, hidden_TH)
        except (SwarmError, TimeoutError) as error:
            log.info("peer %s does not count as a replica of blocks %s: %s", short_peer(record.peer), part, error or "no answer")
            return False
        is_same = are_near(hidden_TH, ours_TH, theirs_TH)
        if not is_same:
            log.warning(
                "peer %s computes something else than our blocks %s: it counts as no replica", short_peer(record.peer), part
            )
        return is_same

    async def _theirs(self, host: Host, record: PeerRecord, part: Span, hidden_TH: Tensor) -> Tensor:
        served = host.served
        router = Router(_Only((record,)), self._ping, served.weights, served.num_blocks, clock=self._clock)
        config = SessionConfig(route_timeout_s=ROUTE_TIMEOUT_S, dtype=served.dtype, blocks=part)
        session = Session(router, self._links, self._identity, config)
        try:
            output = await session.step((), (NUM_TOKENS,), compression.pack(hidden_TH))
        finally:
            await session.close()
            router.close()
        return compression.unpack(output.values)

    async def _ours(self, host: Host, part: Span, hidden_TH: Tensor) -> Tensor:
        is_whole = part == host.served.span
        rows = SessionSequences(
            host.runner, SessionId(secrets.token_bytes(16)), self._identity.peer_id, 1, None if is_whole else part
        )
        try:
            return (await rows.step((), (NUM_TOKENS,), hidden_TH, None)).values
        finally:
            await rows.clear()


def shared(ours: Span, theirs: Span) -> Span | None:
    """The blocks that two spans have in common."""
    start, stop = max(ours.start, theirs.start), min(ours.stop, theirs.stop)
    return Span(start, stop) if start < stop else None


def are_near(hidden_TH: Tensor, ours_TH: Tensor, theirs_TH: Tensor) -> bool:
    """Is this the output of the same blocks? By what they change, since most of an output is its input; for half of the tokens at least:
    a router of experts may choose another one for a token that stands between two."""
    if ours_TH.shape != theirs_TH.shape or not bool(theirs_TH.isfinite().all()):
        return False
    ours, theirs, given = (tensor.detach().to("cpu", torch.float64) for tensor in (ours_TH, theirs_TH, hidden_TH))
    rounding = 8 * torch.finfo(ours_TH.dtype).eps * ours.norm(dim=-1)
    allowed_T = NEAR * (ours - given).norm(dim=-1) + rounding
    return bool(((ours - theirs).norm(dim=-1) <= allowed_T).double().mean() >= 0.5)
