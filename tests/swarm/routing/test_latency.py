"""Round trips are measured once in a while, all at once.

A peer that does not answer is named with the reason.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from protocols.errors import DeadlineError, PeerUnreachableError, SwarmError
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.routing.latency import FORGET_S, FRESH_S, PING_S, Latency
from tests.swarm.inference.toy import new_identity, until
from tests.virtual_time import loop_clock, virtual_time


def ignored(record: PeerRecord, error: SwarmError) -> None:
    pass


class Pinger:
    """Peers that answer after a time of their own, or not at all."""

    def __init__(self) -> None:
        self.delays_s: dict[PeerId, float | None] = {}
        self.asked: list[PeerId] = []
        self.at_once = self.most_at_once = 0

    def record(self, delay_s: float | None = 0.0, trips: tuple[tuple[PeerId, float], ...] = ()) -> PeerRecord:
        peer = new_identity().peer_id
        self.delays_s[peer] = delay_s
        return PeerRecord(peer=peer, addresses=("127.0.0.1:1",), certificate=b"", round_trips=trips)

    async def __call__(self, record: PeerRecord) -> float:
        self.asked.append(record.peer)
        delay_s = self.delays_s[record.peer]
        if delay_s is None:
            raise PeerUnreachableError("no answer")
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(delay_s)
        self.at_once -= 1
        return delay_s * 1e3


async def lost_of(measured: Latency, *records: PeerRecord) -> dict[PeerId, SwarmError]:
    """Those that do not answer, with the reason."""
    return {record.peer: error async for record, error in measured.measure(records) if error is not None}


@virtual_time
async def test_peers_are_measured_together_and_then_remembered() -> None:
    ping = Pinger()
    measured = Latency(ping, ignored, loop_clock())
    near, far, dead = ping.record(0.01), ping.record(0.1), ping.record(None)
    lost = await lost_of(measured, near, far, dead)
    assert set(lost) == {dead.peer} and isinstance(lost[dead.peer], PeerUnreachableError)
    assert ping.most_at_once == 2
    assert [measured.round_trip_ms(record.peer) for record in (near, far)] == pytest.approx([10, 100])
    assert not await lost_of(measured, near, far) and len(ping.asked) == 3
    measured.forget(near.peer)
    await lost_of(measured, near, far)
    assert ping.asked[3:] == [near.peer]


@virtual_time
async def test_silence_is_a_deadline() -> None:
    ping, clock = Pinger(), loop_clock()
    silent = ping.record(10.0)
    assert isinstance(await Latency(ping, ignored, clock).probe(silent), DeadlineError)
    assert clock.now_s() == PING_S


@virtual_time
async def test_an_answer_counts_for_a_minute_and_its_round_trip_is_remembered_for_a_quarter_of_an_hour() -> None:
    ping = Pinger()
    measured = Latency(ping, ignored, loop_clock())
    old, other = ping.record(0.2), ping.record(0.0)
    await lost_of(measured, old)
    await asyncio.sleep(FRESH_S - 0.001)
    assert measured.has_answered(old.peer)
    await asyncio.sleep(0.001)
    assert not measured.has_answered(old.peer) and measured.is_remembered(old.peer)
    await asyncio.sleep(FORGET_S - FRESH_S)
    await lost_of(measured, other)
    assert not measured.is_remembered(old.peer) and measured.has_answered(other.peer)


@virtual_time
async def test_an_unmeasured_peer_is_not_taken_for_a_near_one() -> None:
    ping = Pinger()
    measured = Latency(ping, ignored, loop_clock())
    assert measured.round_trip_ms(new_identity().peer_id) == 0
    near, far, unknown = ping.record(0.0), ping.record(0.05), ping.record()
    await lost_of(measured, near, far)
    assert measured.round_trip_ms(unknown.peer) == measured.round_trip_ms(far.peer)


@virtual_time
async def test_ways_between_others_are_what_they_announce_else_the_longer_of_ours() -> None:
    ping = Pinger()
    measured = Latency(ping, ignored, loop_clock())
    a = ping.record(0.02)
    b = ping.record(0.0, trips=((a.peer, 8.0),))
    c = ping.record(0.0)
    await lost_of(measured, a, b, c)
    difference_ms = abs(measured.round_trip_ms(a.peer) - measured.round_trip_ms(b.peer))
    assert measured.between_ms(a, b) == measured.between_ms(b, a) == max(8.0, difference_ms) / 2
    assert measured.between_ms(a, c) == measured.round_trip_ms(a.peer) / 2
    assert measured.between_ms(None, a) == measured.between_ms(a, None) == measured.round_trip_ms(a.peer) / 2
    assert measured.between_ms(None, None) == 0


@virtual_time
async def test_two_peers_are_not_nearer_to_each_other_than_our_ways_to_them_differ() -> None:
    """Whatever one of them announces; and what the other one says counts as well."""
    ping = Pinger()
    measured = Latency(ping, ignored, loop_clock())
    far = ping.record(0.1)
    liar = ping.record(0.0, trips=((far.peer, 0.01),))
    honest = ping.record(0.1, trips=((liar.peer, 500.0),))
    await lost_of(measured, far, liar, honest)
    assert measured.between_ms(liar, far) == (measured.round_trip_ms(far.peer) - measured.round_trip_ms(liar.peer)) / 2 > 30
    boasting = PeerRecord(peer=liar.peer, round_trips=((honest.peer, 0.01),))
    assert measured.between_ms(boasting, honest) == 250.0


@virtual_time
async def test_what_is_under_way_when_the_caller_leaves_still_counts_and_its_silence_is_told() -> None:
    ping, told = Pinger(), list[PeerId]()
    measured = Latency(ping, lambda record, error: told.append(record.peer), loop_clock())
    near, late, dead = ping.record(0.0), ping.record(0.05), ping.record(None)
    async with aclosing(measured.measure([near, late])) as replies:
        assert (await anext(replies))[0] is near
    assert not measured.has_answered(late.peer)
    await until(lambda: measured.has_answered(late.peer))
    measured.look_around([near, late, dead], 8)
    await until(lambda: told == [dead.peer])
    assert len(ping.asked) == 3
