"""Several peers are asked for one thing, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from protocols.errors import NoRouteError, OverloadedError
from protocols.identity import from_seed
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.weights.asking import AT_ONCE, JOIN_S, MAX_RENEWALS, PAUSE_S, TURN_S, Inquiry, Turn
from swarm.weights.reputation import Reputation
from tests.virtual_time import loop_clock, virtual_time

PEERS = [PeerRecord(peer=from_seed(bytes([number]) * 32).peer_id) for number in range(1, AT_ONCE + 2)]
GIVER = PEERS[-1]


def asking(ask: Callable[[PeerRecord, Turn], Awaitable[str]], records: list[PeerRecord], reputation: Reputation) -> Inquiry[str]:
    return Inquiry(records, ask, "something", reputation, loop_clock())


@virtual_time
async def test_silent_peers_are_replaced_after_their_time_and_have_ended_before_the_result() -> None:
    clock, reputation = loop_clock(), Reputation()
    asked_s: dict[PeerId, float] = {}
    told: list[PeerId] = []

    async def ask(record: PeerRecord, turn: Turn) -> str:
        asked_s[record.peer] = clock.now_s()
        if record is GIVER:
            return "here"
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2 if record is PEERS[0] else 0.1)  # a peer after its time slice ends last of all
            told.append(record.peer)
        raise AssertionError("unreachable")

    assert await asking(ask, PEERS, reputation).result(60.0) == "here"
    silent = [record.peer for record in PEERS[:-1]]
    assert list(asked_s) == [*silent, GIVER.peer]
    assert asked_s[silent[1]] == pytest.approx(2 * JOIN_S[0]), "the second is asked beside the first"
    assert TURN_S < asked_s[GIVER.peer] <= max(TURN_S, asked_s[silent[-1]]) + 2 * JOIN_S[0]
    assert reputation.failures(silent[0]) == 1 and reputation.has_given(GIVER.peer)
    assert sorted(told) == sorted(silent), "a peer after its time slice is not left behind"


@virtual_time
async def test_a_peer_without_a_place_is_asked_again_after_a_pause() -> None:
    clock, asked_s = loop_clock(), list[float]()

    async def ask(record: PeerRecord, turn: Turn) -> str:
        asked_s.append(clock.now_s())
        if len(asked_s) < 3:
            raise OverloadedError("no place now")
        return "here"

    reputation = Reputation()
    assert await asking(ask, [GIVER], reputation).result(60.0) == "here"
    assert asked_s == pytest.approx([0, PAUSE_S, 2 * PAUSE_S], abs=3 * JOIN_S[0]) and not reputation.failures(GIVER.peer)


@virtual_time
async def test_the_deadline_ends_silence_and_parts_renew_it_ten_times_at_most() -> None:
    clock = loop_clock()

    async def never(record: PeerRecord, turn: Turn) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def drips(record: PeerRecord, turn: Turn) -> str:
        while True:
            await asyncio.sleep(1.0)
            turn.renew()

    for ask, times in ((never, 1.0), (drips, MAX_RENEWALS)):
        began_s = clock.now_s()
        with pytest.raises(NoRouteError, match="in time"):
            await asking(ask, [GIVER], Reputation()).result(5.0)
        assert clock.now_s() - began_s == pytest.approx(5.0 * times)
