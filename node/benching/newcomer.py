"""What a swarm would gain by a node like this one. Pure.

The functions are those of nodes and clients: `swarm/placement/choose.py` says what the node would take, `members.throughputs` what the
swarm can do, and `node/watching/what_if.py` which route a client here would get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from node.watching import what_if
from node.watching.look import Look
from protocols.hosted import Hosted, Load
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS, Blocks
from protocols.weights_id import Weights
from swarm.placement.choose import Capacity, choose, count_replicas, gaps_of
from swarm.placement.members import Member, throughputs

NAME = "a node here"
HERE_MS = 0.1
"""Milliseconds of a round trip to a node on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """A node that there is not."""

    peer: PeerId
    weights: Weights
    dtype: str
    block_ms: float
    """Milliseconds of one token through one block."""
    capacity: Capacity
    hosts_ends: bool
    """Embedding and head, too, beside the first or last block."""
    trips_ms: Mapping[PeerId, float]
    """Its round trips to the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """Before and after."""

    span: Span
    """What the node would host."""
    reason: str
    missing_before: tuple[Span, ...]
    missing_after: tuple[Span, ...]
    """Blocks without a node."""
    swarm_before: float
    swarm_after: float
    """Tokens a second through the slowest block, one at a time; batches compute more. 0 = there is no route."""
    route_before: what_if.Prediction
    route_after: what_if.Prediction
    """Of a client without weights, on this machine."""


def gain(members: Sequence[Member], newcomer: Newcomer, look: Look) -> Gain:
    """What changes if it comes. members: those that host the model, as placement sees them. ConfigError if nothing fits it."""
    num_blocks, name = len(newcomer.capacity.block_bytes), newcomer.weights.model.name
    choice = choose(newcomer.peer, members, newcomer.capacity)
    beside = ENDS if newcomer.hosts_ends and _is_outer(choice.span, num_blocks) else frozenset()
    joined = Member(peer=newcomer.peer, span=choice.span, speed=1 / max(newcomer.block_ms, 1e-6), beside=beside)
    after = [*members, joined]
    return Gain(
        span=choice.span, reason=choice.reason, missing_before=_missing(members, num_blocks), missing_after=_missing(after, num_blocks),
        swarm_before=1e3 * min(throughputs(members, num_blocks)), swarm_after=1e3 * min(throughputs(after, num_blocks)),
        route_before=what_if.as_served(name, num_blocks, look),
        route_after=what_if.as_served(name, num_blocks, _with(look, newcomer, choice.span, num_blocks)),
    )  # fmt: skip


def _is_outer(span: Span, num_blocks: int) -> bool:
    return span.start == 0 or span.stop == num_blocks


def _missing(members: Sequence[Member], num_blocks: int) -> tuple[Span, ...]:
    return tuple(gaps_of(count_replicas((one.span for one in members), num_blocks)))


def _with(look: Look, newcomer: Newcomer, span: Span, num_blocks: int) -> Look:
    """The same swarm, with its record."""
    load = Load(free_tokens=what_if.ROOMY_TOKENS, step_ms=newcomer.block_ms * len(span), block_ms=newcomer.block_ms)
    blocks = Hosted(unit=Blocks.of(span), weights=newcomer.weights, num_blocks=num_blocks, dtype=newcomer.dtype, load=load)
    ends = [replace(blocks, unit=unit) for unit in ENDS] if newcomer.hosts_ends and _is_outer(span, num_blocks) else []
    trips = tuple(newcomer.trips_ms.items())
    record = PeerRecord(peer=newcomer.peer, name=NAME, hosted=(blocks, *ends), round_trips=trips)
    return replace(look, records={**look.records, newcomer.peer: record}, trips_ms={**look.trips_ms, newcomer.peer: HERE_MS})
