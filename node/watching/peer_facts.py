"""What is known of one peer, and what to mend. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from node.watching.look import Look
from node.watching.model_rows import PAUSED
from protocols.defaults import PROTOCOL_VERSION
from protocols.hosted import Hosted
from protocols.records import PeerRecord
from protocols.words import counted, one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRow:
    """One unit that a peer announces."""

    unit: str
    model: str
    state: str
    precision: str
    step: str
    block: str
    queue: str
    free: str
    capacity: str


def facts(record: PeerRecord, look: Look) -> Iterator[tuple[str, str]]:
    """Names and texts, each one line that is safe to show."""
    trip = look.trips_ms.get(record.peer)
    yield "PeerID", record.peer
    yield "name", one_line(record.name) or "none"
    yield (
        "answers",
        "no" if record.peer in look.silent else "not asked yet" if trip is None else f"yes, in {trip:.1f} ms from here",
    )
    yield "state", PAUSED if record.paused else one_line(record.state)
    yield "software", one_line(record.software) or "not said"
    yield "protocol", f"versions {record.protocol[0]} to {record.protocol[1]}"
    yield "addresses", one_line(", ".join(record.addresses)) or "none"
    yield (
        "reachable",
        {None: "no peer has dialled it back yet", True: "yes, another peer has dialled it back", False: "no"}[record.reachable],
    )
    yield (
        "uplink for weights",
        f"at most {record.upload_bytes_s * 8 / 1e6:.0f} Mbit/s" if record.upload_bytes_s else "no limit is announced",
    )
    if record.roles:
        yield "trains", one_line(", ".join(f"{role} of {role.model.name}" for role in record.roles))


def fixes(record: PeerRecord, look: Look) -> Iterator[str]:
    """What its owner can do, each a sentence."""
    if record.peer in look.silent:
        yield "It announced itself and does not answer: its process has ended, or its machine or network is down. Start it again."
    if record.paused:
        yield "An operator has paused it, so it takes no new sessions: resume it here, or by swarm operator resume."
    if record.reachable is False:
        yield (
            "Other peers cannot dial it: forward its two ports (PORT and PORT + 1) at the router and pass --announce HOST:PORT, or let the "
            "firewall accept them."
        )
    elif record.reachable is None:
        yield "No other peer has dialled it back yet: with a second node in the swarm this is tried by itself."
    if record.protocol[1] != PROTOCOL_VERSION:
        newer = "it" if record.protocol[1] < PROTOCOL_VERSION else "this machine"
        yield f"It speaks protocol {record.protocol[1]}, and this machine {PROTOCOL_VERSION}: upgrade {newer}."
    own = f"murmuration {metadata.version('murmuration')}"
    if record.software.startswith("murmuration ") and not record.software.startswith(own):
        yield f"It runs {one_line(record.software)}, and this machine {own}."
    if any(one.is_blocks and record.state_of(one) == "serving" and not one.load.free_tokens for one in record.hosted):
        yield "It has no memory left for keys and values: new sessions go elsewhere. Host fewer blocks, or wait for sessions to end."


def units(record: PeerRecord) -> list[UnitRow]:
    """Its units in the order of its record."""
    return [_row(record, one) for one in record.hosted]


def _row(record: PeerRecord, one: Hosted) -> UnitRow:
    load, quantized = one.load, "" if one.quantization == "none" else f" {one.quantization}"
    return UnitRow(
        unit=str(one.unit), model=one_line(str(one.weights)[:40]), state=one_line(record.state_of(one)),
        precision=one_line(f"{one.dtype}{quantized}"), step=f"{load.step_ms:.1f} ms" if load.step_ms else "–",
        block=f"{load.block_ms:.2f} ms" if load.block_ms else "–", queue=str(load.queue), free=f"{load.free_tokens:,}",
        capacity=counted(one.capacity_blocks, "block") if one.capacity_blocks else "stays",
    )  # fmt: skip
