"""Chooses the blocks that this node hosts, and their number format.

A node hosts the blocks of `--blocks`, else those that the swarm needs. The decisions are pure (`swarm/placement/choose.py`,
`node/hardware.py`); this file applies them to the directory's records. Two nodes may choose the same blocks at the same moment: so each
announces `joining`, waits and looks again, and the node with the larger hash chooses anew (docs/architecture.md, "Placement race").
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from node.config import DTYPES as NUMBER_FORMATS
from node.config import NodeConfig
from node.hardware import torch_dtype
from protocols.errors import ConfigError
from protocols.hosted import Hosted
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS, Blocks, Ends, Unit
from protocols.weights_id import Weights
from swarm.models.checkpoint import Checkpoint
from swarm.models.dtypes import DTYPES
from swarm.models.sizes import kv_bytes_per_token, unit_bytes
from swarm.placement.choose import Capacity, Choice, choose, outranking, overlaps
from swarm.placement.members import Member, digest
from swarm.placement.rebalance import stands
from swarm.speeds import floor_ms

RACE_WAIT_S = 1.5
"""Seconds for an announcement to reach nodes that join at the same moment."""

RACE_ROUNDS = 8
"""Limit of the looks before a node keeps its span; if n peers race, n looks are enough."""

MAX_JOINING_S = 60.0
"""Seconds for which blocks that a peer is about to host count as hosted, from the first look that shows it on."""

MAX_PLANNED = 256
"""Limit of the peers that a plan counts: such a plan takes up to a second, and a flooded directory has thousands of records."""

KV_RESERVE_TOKENS = 4_096
"""Tokens for whose keys and values each chosen block keeps memory (fewer if the model's limit is lower)."""


class Records(Protocol):
    """The directory's records of one model."""

    @property
    def peers(self) -> Sequence[PeerRecord]: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """Blocks that a peer hosts, or is about to."""

    peer: PeerId
    hosted: Hosted
    is_joining: bool
    member: Member


def claims(records: Records, weights: Weights, me: PeerId) -> list[Claim]:
    """Claims of the other peers to blocks of these weights, or of a later version that they have trained; peers that drain do not count.

    A peer that has measured nothing yet (each that joins) counts as fast as the median of the peers that have.
    """
    found = [
        (record, one)
        for record in records.peers
        if record.peer != me
        for one in _newest(record, weights)
        if record.state_of(one) != "draining"
    ]
    measured_ms = _measured_ms(found)
    usual_ms, least_ms = statistics.median(measured_ms) if measured_ms else 0.0, floor_ms(measured_ms)
    return [
        Claim(
            peer=record.peer,
            hosted=one,
            is_joining=record.state_of(one) == "joining",
            member=as_member(record, one, least_ms, usual_ms),
        )
        for record, one in found
    ]


def _newest(record: PeerRecord, weights: Weights) -> Iterable[Hosted]:
    """Blocks of a model, each span once: a node that trains announces the versions that it serves, a newcomer begins with version 0."""
    versions = sorted(record.hosted_of(weights.model.digest), key=lambda one: one.weights.version)
    return {one.unit: one for one in versions if one.is_blocks and one.weights.adapter == weights.adapter}.values()


def _measured_ms(hosted: Iterable[tuple[PeerRecord, Hosted]]) -> list[float]:
    """Milliseconds of a block, of each peer that has measured any: the least that the peer claims."""
    found: dict[PeerId, float] = {}
    for record, one in hosted:
        if one.load.block_ms:
            found[record.peer] = min(one.load.block_ms, found.get(record.peer, one.load.block_ms))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of one peer: the span that it serves, and the span that it moves to."""

    peer: PeerId
    serving: Member | None
    joining: Member | None

    @property
    def claim(self) -> Member:
        """The span where it will be."""
        found = self.joining or self.serving
        assert found is not None
        return found

    def stands(self, me: PeerId) -> bool:
        """Whether `me`, which is about to move as well, may count on the span that this peer serves."""
        return stands(me, self.peer, is_moving=self.joining is not None)

    def seen_by(self, me: PeerId) -> Member:
        """The span where it will be, if `me` is about to move as well: of two peers that move, the one with the larger hash yields;
        a newcomer does not."""
        return self.serving if self.serving is not None and self.stands(me) else self.claim


def least_ms(records: Iterable[PeerRecord], weights: Weights) -> float:
    """Least credible milliseconds of a block, of all peers that announce these weights, this node included.

    Nodes that see the same records compute the same value, as the plan requires.
    """
    return floor_ms(_measured_ms((record, one) for record in records for one in record.blocks(weights)))


def claims_by_peer(records: Sequence[PeerRecord], weights: Weights, dtype: str, me: PeerId) -> list[Claims]:
    """Claims of the other peers that serve or join with exactly these weights in this format; a route uses one format."""
    found, at_least_ms = [], least_ms(records, weights)
    for record in records:
        spans: dict[str, Member] = {}
        for one in record.blocks(weights):
            if one.dtype == dtype:
                spans.setdefault(record.state_of(one), as_member(record, one, at_least_ms))
        if record.peer != me and ("serving" in spans or "joining" in spans):
            found.append(Claims(record.peer, spans.get("serving"), spans.get("joining")))
    return found


def planned(known: Sequence[Claims], has_met: Callable[[PeerId], bool]) -> list[Claims]:
    """At most MAX_PLANNED of `known`: first the peers that have answered this node, then one of every span, then a second of each, …"""
    if len(known) <= MAX_PLANNED:
        return list(known)
    counts: Counter[Span] = Counter()
    ranks: dict[PeerId, tuple[bool, int]] = {}
    ordered = sorted(known, key=lambda one: digest(one.peer))  # nodes that see the same records agree on it
    for one in ordered:
        ranks[one.peer] = not has_met(one.peer), counts[one.claim.span]
        counts[one.claim.span] += 1
    return sorted(ordered, key=lambda one: ranks[one.peer])[:MAX_PLANNED]


def as_member(record: PeerRecord, hosted: Hosted, least_ms: float = 0.0, usual_ms: float = 0.0) -> Member:
    """A record's claim to blocks. least_ms: a faster claim counts as this. usual_ms: of a peer that has measured nothing; 0 = 1 ms."""
    block_ms = hosted.load.block_ms or usual_ms
    speed = 1 / max(block_ms, least_ms) if block_ms else 1.0
    beside = record.beside(hosted)
    return Member(peer=record.peer, span=hosted.span, capacity_blocks=hosted.capacity_blocks, speed=speed, beside=beside)


class Joining:
    """Since when this node has seen each `joining` claim of the other peers. The clock is an argument."""

    def __init__(self) -> None:
        self._since_s: dict[tuple[PeerId, Span], float] = {}

    def current(self, known: Sequence[Claims], now_s: float) -> list[Claims]:
        """`known` without `joining` claims older than MAX_JOINING_S; a peer that serves nothing either is left out."""
        names = {(one.peer, one.joining.span) for one in known if one.joining is not None}
        self._since_s = {name: self._since_s.get(name, now_s) for name in names}
        late = {name for name, since_s in self._since_s.items() if now_s - since_s > MAX_JOINING_S}
        found = [replace(one, joining=None) if one.joining and (one.peer, one.joining.span) in late else one for one in known]
        return [one for one in found if one.serving is not None or one.joining is not None]


def other_weights(records: Records, model: ModelId) -> list[str]:
    """Digests of other weights with the same name that peers serve."""
    models = {one.weights.model for record in records.peers for one in record.hosted}
    return sorted({other.digest for other in models if other.name == model.name} - {model.digest})


def usual_dtype(others: Sequence[Claim]) -> str | None:
    """The number format, of those that this node supports, in which most of the others compute; None if there is none."""
    counts = Counter(claim.hosted.dtype for claim in others if claim.hosted.dtype in NUMBER_FORMATS)
    return min(counts, key=lambda dtype: (-counts[dtype], dtype), default=None)


def stored_dtype(checkpoint: Checkpoint) -> str:
    """The format of most of the checkpoint's bytes, as `bfloat16`."""
    sizes: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        sizes[info.dtype] += info.stop - info.start
    return str(DTYPES[sizes.most_common(1)[0][0]]).removeprefix("torch.") if sizes else "float32"


def make_capacity(
    checkpoint: Checkpoint, dtype: str, free_bytes: int, num_blocks: int | None, ends: bool | None = None
) -> Capacity:
    """What this machine can host of the model. ends: True = embedding and head must fit beside a first or last span."""
    kind = torch_dtype(dtype)
    tokens = min(KV_RESERVE_TOKENS, checkpoint.max_positions or KV_RESERVE_TOKENS)
    spans = [Span(block, block + 1) for block in range(checkpoint.num_blocks)]
    sizes = (
        unit_bytes(checkpoint, Blocks.of(span), kind) + tokens * kv_bytes_per_token(checkpoint.config, span, kind)
        for span in spans
    )
    beside_bytes = unit_bytes(checkpoint, Ends(), kind) if ends else 0
    return Capacity(free_bytes=free_bytes, block_bytes=tuple(sizes), num_blocks=num_blocks, beside_bytes=beside_bytes)


def beside(wish: bool | None, span: Span, num_blocks: int, needed_bytes: int, left_bytes: int) -> tuple[frozenset[Unit], str]:
    """The units that a node with `span` hosts beside it (embedding and head, or none), and why. Pure.

    wish: of the volunteer; None = host them if the memory that the blocks and their K/V reserve leave is enough.
    """
    if span.start > 0 and span.stop < num_blocks:
        return frozenset(), "the blocks are in the middle of the model, where no client needs them"
    if wish is not None:
        return (ENDS, "as asked") if wish else (frozenset(), "as asked (--no-ends)")
    needed, left = needed_bytes / 1e6, left_bytes / 1e6
    if needed_bytes > left_bytes:
        return frozenset(), f"they take {needed:.0f} MB, and the blocks leave {max(0.0, left):.0f} MB"
    return ENDS, f"they take {needed:.0f} of the {left:.0f} MB that are left"


def as_told(span: Span, capacity: Capacity) -> Choice:
    """The span of `--blocks`, checked against the memory."""
    takes, free = capacity.takes(span) / 1e6, capacity.free_bytes / 1e6
    if takes > free:
        raise ConfigError(
            f"no memory for blocks {span}: they take {takes:.0f} MB with K/V, there are {free:.0f} MB; "
            "free some, or host fewer: leave --blocks out and the node takes what fits"
        )
    return Choice(span, f"as asked; it takes {takes:.0f} of {free:.0f} MB, with its K/V reserve")


async def settle(
    config: NodeConfig,
    me: PeerId,
    capacity: Capacity,
    look: Callable[[], Awaitable[list[Claim]]],
    announce: Callable[[Span], Awaitable[None]],
    *,
    is_alone: bool = False,
) -> Choice:
    """Choose a span, announce it as `joining`, and choose again if a peer that outranks this node claims the same blocks.

    look: the claims of the others now. announce: publishes this node's claim; called with each span chosen.
    is_alone: no peer is known that could choose at the same moment.
    A span that the volunteer named is announced and kept, even if other nodes host it.
    """
    choice = as_told(config.blocks, capacity) if config.blocks is not None else await _first_choice(me, look, capacity)
    await announce(choice.span)
    if config.blocks is not None or is_alone:
        return choice
    for _look in range(RACE_ROUNDS):
        await asyncio.sleep(RACE_WAIT_S)
        moved = look_again(me, choice, await look(), capacity)
        if moved.span == choice.span:
            break
        choice = moved
        await announce(choice.span)
    return choice


def look_again(me: PeerId, choice: Choice, others: Sequence[Claim], capacity: Capacity) -> Choice:
    """The same choice, unless a joining peer that outranks `me` claims some of its blocks: then the best span beside its claim. Pure."""
    stronger = outranking(me, [claim.member for claim in others if claim.is_joining])
    if not overlaps(choice.span, [one.span for one in stronger]):
        return choice
    hosted = [claim.member for claim in others if not claim.is_joining]
    return choose(me, [*hosted, *stronger], capacity, current=choice.span)


async def _first_choice(me: PeerId, look: Callable[[], Awaitable[list[Claim]]], capacity: Capacity) -> Choice:
    return choose(me, [claim.member for claim in await look()], capacity)
