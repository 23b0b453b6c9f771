"""Predicts where machines would host a model, and its speed. Pure.

It asks the functions that nodes and clients ask: `swarm/placement/choose.py` says what each machine takes, `swarm/routing/path.py` which
route is best. What is assumed is said with each number. Memory for keys and values is not counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from node.watching.changes import label
from node.watching.look import Look
from protocols.errors import ConfigError
from protocols.hosted import Load
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from protocols.units import ENDS
from swarm.placement.choose import Capacity, choose, count_replicas, gaps_of
from swarm.placement.members import Member, digest
from swarm.routing import offers, path

ROOMY_TOKENS = 1 << 30
"""Free memory of keys and values that is assumed, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """A model, as far as placement needs to know it."""

    name: str
    num_blocks: int
    block_bytes: int
    """Of the largest block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one peer could do, from what it does now."""

    peer: PeerId
    label: str
    free_bytes: int
    memory_reason: str
    ms_per_mb: float
    """Milliseconds for one token through a megabyte of blocks."""

    speed_reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """What one machine would host."""

    machine: Machine
    span: Span | None
    """None = nothing of it fits."""

    reason: str
    block_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One part of a token's way, with the reason for its number."""

    what: str
    ms: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is to be expected."""

    placed: tuple[Placed, ...] = ()
    """Empty for a model as it is served."""

    legs: tuple[Leg, ...] = ()
    """Empty: there is no route."""

    missing: tuple[Span, ...] = ()
    replicas: tuple[int, ...] = field(default=())

    @property
    def token_ms(self) -> float:
        return sum(leg.ms for leg in self.legs)

    @property
    def tokens_per_s(self) -> float:
        """Of one stream; 0 = there is no route."""
        return 1e3 / self.token_ms if self.token_ms else 0.0


def machines(look: Look, block_bytes: Mapping[str, int]) -> list[Machine]:
    """Those that answer and host blocks of a model whose size is known. block_bytes: of models, by digest."""
    known = [
        found for record in look.records.values() if record.peer not in look.silent for found in _hosting(record, block_bytes)
    ]
    measured = [ms / (size / 1e6) for _, _, size, ms in known if ms]
    usual = statistics.median(measured) if measured else offers.UNMEASURED_MS_PER_BLOCK / 100
    found: dict[PeerId, Machine] = {}
    for record, blocks, size, ms in known:
        mb = size / 1e6
        name = label(record.name, record.peer)
        speed = (
            f"{ms:.2f} ms a block of {mb:.1f} MB, as it announces" if ms else "not measured: as fast as the median of the others"
        )
        one = Machine(
            peer=record.peer, label=name, free_bytes=blocks * size, ms_per_mb=ms / mb if ms else usual, speed_reason=speed,
            memory_reason=f"{blocks} blocks of {mb:.1f} MB, as it announces",
        )  # fmt: skip
        if record.peer not in found or one.free_bytes > found[record.peer].free_bytes:
            found[record.peer] = one
    return sorted(found.values(), key=lambda one: digest(one.peer))


def _hosting(record: PeerRecord, block_bytes: Mapping[str, int]) -> Iterator[tuple[PeerRecord, int, int, float]]:
    for one in record.blocks():
        size = block_bytes.get(one.weights.model.digest)
        if size and record.state_of(one) != "draining":
            ms = one.load.block_ms or one.load.step_ms / len(one.span)
            yield record, max(one.capacity_blocks, len(one.span)), size, ms


def predict(sizes: Sizes, having: Sequence[Machine], look: Look) -> Prediction:
    """The machines choose one after the other, as nodes that join do; then a client without weights asks."""
    members, placed = list[Member](), list[Placed]()
    for machine in having:
        capacity = Capacity(free_bytes=machine.free_bytes, block_bytes=(sizes.block_bytes,) * sizes.num_blocks)
        block_ms = machine.ms_per_mb * sizes.block_bytes / 1e6
        try:
            choice = choose(machine.peer, members, capacity)
        except ConfigError as error:
            placed.append(Placed(machine=machine, span=None, reason=str(error).partition(";")[0]))
            continue
        members.append(Member(peer=machine.peer, span=choice.span, speed=1 / max(block_ms, 1e-6)))
        placed.append(Placed(machine=machine, span=choice.span, reason=choice.reason, block_ms=block_ms))
    replicas = count_replicas((member.span for member in members), sizes.num_blocks)
    candidates = [
        path.Candidate(peer=one.machine.peer, span=one.span, step_ms=one.block_ms * len(one.span), free_tokens=ROOMY_TOKENS)
        for one in placed
        if one.span is not None
    ]
    reasons = {
        one.machine.peer: f"{len(one.span)} × {one.block_ms:.2f} ms; {one.machine.speed_reason}"
        for one in placed
        if one.span is not None
    }
    route = path.best(candidates, sizes.num_blocks, lambda a, b: _way(look, a, b)[0])
    return Prediction(
        placed=tuple(placed), legs=_legs(route or (), look, reasons), missing=tuple(gaps_of(replicas)), replicas=tuple(replicas)
    )


def as_served(name: str, num_blocks: int, look: Look) -> Prediction:
    """Of a model that is served now, for a client without weights, over its nodes that answer."""
    served = [one for one in offers.named(look.records.values(), name) if one.record.peer not in look.silent]
    for precision in offers.precisions(served):
        group = [one for one in served if one.hosted.precision == precision]
        wish = offers.Wish(None, ENDS, ())
        candidates = offers.candidates(group, wish, num_blocks, frozenset())
        route = path.best(candidates, num_blocks, lambda a, b: _way(look, a, b)[0], ENDS)
        if route is not None:
            loads = {one.record.peer: one.hosted.load for one in group}
            is_measured = any(load.step_ms or load.block_ms for load in loads.values())
            reasons = {one.peer: _served_reason(one, loads[one.peer], is_measured) for one in route}
            return Prediction(legs=_legs(route, look, reasons))
    return Prediction()


def _served_reason(one: path.Candidate, load: Load, is_measured: bool) -> str:
    """is_measured: one of its peers has measured something."""
    block_ms = one.step_ms / len(one.span) / (1 + load.queue)
    announced_ms = load.step_ms / len(one.span) or load.block_ms
    if not is_measured:
        source = "assumed: no node has measured anything yet"
    elif not announced_ms:
        source = "as the others announce"
    elif block_ms > announced_ms * 1.01:
        source = f"it announces {announced_ms:.2f}, and is believed twice the median speed at most"
    else:
        source = "as it announces"
    return f"{block_ms:.2f} ms a block, {source}; {load.queue} waiting"


def _legs(route: Sequence[path.Candidate], look: Look, reasons: Mapping[PeerId, str]) -> tuple[Leg, ...]:
    names = {record.peer: label(record.name, record.peer) for record in look.records.values()}
    legs, here = list[Leg](), None
    for one in route:
        ms, reason = _way(look, here, one.peer)
        legs.append(Leg(what=f"way to {names.get(one.peer, one.peer)}", ms=ms, reason=reason))
        legs.append(Leg(what=f"{names.get(one.peer, one.peer)} computes {one.span}", ms=one.step_ms, reason=reasons[one.peer]))
        here = one.peer
    if route:
        ms, reason = _way(look, here, None)
        legs.append(Leg(what="way back to here", ms=ms, reason=reason))
    return tuple(legs)


def _way(look: Look, start: PeerId | None, stop: PeerId | None) -> tuple[float, str]:
    """One-way milliseconds, and where they come from."""
    if start is None or stop is None:
        peer = start or stop
        ms = look.trips_ms.get(peer) if peer else None
        return (
            (ms / 2, f"half of the round trip of {ms:.1f} ms from here")
            if ms is not None
            else (_usual(look), "not measured: the median")
        )
    told = [ms for one, other in ((start, stop), (stop, start)) if one in look.records
            for peer, ms in look.records[one].round_trips if peer == other]  # fmt: skip
    if told:
        return min(told) / 2, f"half of the round trip of {min(told):.1f} ms that they announce"
    return _usual(look), "not measured: the median of the ways from here"


def _usual(look: Look) -> float:
    return statistics.median(look.trips_ms.values()) / 2 if look.trips_ms else 0.0
