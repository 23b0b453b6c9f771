"""A neighbour with hundreds of addresses keeps no other from being asked."""

from __future__ import annotations

import asyncio
import random

import pytest

from protocols.errors import (
    BadRequestError,
    DeadlineError,
    DrainingError,
    InternalError,
    NotAllowedError,
    OverloadedError,
    PeerUnreachableError,
    PrivateSwarmError,
    ProtocolVersionError,
    SwarmError,
    UnauthenticatedError,
)
from protocols.ids import peer_id_of
from swarm.dht.address import PeerAddress
from swarm.meeting.joining import Joiner, JoinTimes, Met, Sources, is_refusal
from swarm.meeting.neighbours import MAX_ASKED, MAX_HEARD, MAX_PER_HOST, Neighbours

SEED = 12


def address(number: int, host: str) -> PeerAddress:
    return PeerAddress("ip4", host, 4001, peer_id_of(number.to_bytes(32)))


HONEST = address(0, "192.168.1.7")
FLOOD = [address(number, f"192.168.2.{number % 250}") for number in range(1, 1_001)]


async def test_the_last_one_is_heard_however_many_have_spoken() -> None:
    heard = Neighbours(random.Random(SEED))
    for one in FLOOD:
        heard.hear(one)
    heard.hear(HONEST)
    assert len(heard) == MAX_HEARD and heard.news.is_set()
    assert HONEST in {one for _ in range(5) for one in heard.to_ask((), only_new=True)}


async def test_one_host_has_few_places() -> None:
    heard = Neighbours(random.Random(SEED))
    heard.hear(HONEST)
    for number in range(1, 500):
        heard.hear(address(number, "192.168.1.9"))
    assert len(heard) == MAX_PER_HOST + 1


async def test_all_are_asked_in_turn_the_new_ones_first() -> None:
    heard = Neighbours(random.Random(SEED))
    for one in FLOOD[:100]:
        heard.hear(one)
    first = heard.to_ask(())
    assert len(first) == MAX_ASKED and set(heard.to_ask((), only_new=True)) == set(FLOOD[:100]) - set(first)
    assert heard.to_ask((), only_new=True) == [] and len(heard.to_ask((FLOOD[0],))) == MAX_ASKED


class Alone:
    """A DHT that meets only the honest neighbour."""

    def __init__(self) -> None:
        self.num_neighbours = 0

    async def join(self, address: PeerAddress) -> None:
        if address != HONEST:
            raise PeerUnreachableError("silent")
        self.num_neighbours = 1

    async def look_around(self) -> None:
        pass


async def test_the_honest_neighbour_is_joined_behind_a_flood_of_others() -> None:
    """Half of the others are silent, half are of another swarm; the log is told of a few."""
    most = 0
    asking = 0

    async def check(address: PeerAddress) -> None:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0)
        asking -= 1
        if address.port and address != HONEST:
            raise (PeerUnreachableError if int(address.host.split(".")[-1]) % 2 else BadRequestError)("not ours")

    async def on_change(met: Met | None, text: str) -> None:
        pass

    dht, sources = Alone(), Sources(has_lan=True, check=check, neighbours=Neighbours(random.Random(SEED)))
    sources.neighbours.hear(HONEST)
    for one in FLOOD[:200]:
        sources.neighbours.hear(one)
    joiner = Joiner(dht, sources, on_change)
    running = asyncio.create_task(joiner.run())
    try:
        await joiner.joined(15.0)
    finally:
        running.cancel()
    assert dht.num_neighbours == 1 and most <= MAX_ASKED


@pytest.mark.parametrize("num_neighbours", [0, 1])
async def test_a_neighbour_that_announces_new_addresses_all_the_time_causes_a_round_a_pause(
    num_neighbours: int,
) -> None:
    """Whether we have joined or not, and no lookup in the DHT."""
    num_asked = num_looks = 0

    async def check(address: PeerAddress) -> None:
        nonlocal num_asked
        num_asked += 1
        raise PeerUnreachableError("silent")

    async def on_change(met: Met | None, text: str) -> None:
        pass

    class Counted(Alone):
        async def look_around(self) -> None:
            nonlocal num_looks
            num_looks += 1

    dht, sources = Counted(), Sources(has_lan=True, check=check, neighbours=Neighbours(random.Random(SEED)))
    dht.num_neighbours = num_neighbours
    running = asyncio.create_task(Joiner(dht, sources, on_change, JoinTimes(min_pause_s=0.2)).run())
    try:
        ends_s = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < ends_s:
            for number in range(MAX_ASKED):
                sources.neighbours.hear(address(random.getrandbits(200), f"192.168.2.{number}"))
            await asyncio.sleep(0.001)
    finally:
        running.cancel()
    assert MAX_ASKED <= num_asked <= 7 * MAX_ASKED and num_looks == 0


@pytest.mark.parametrize("port", [4001, 4003])
async def test_a_neighbour_that_was_met_by_another_address_is_not_joined_again(port: int) -> None:
    """A node of this machine is remembered on loopback, and heard on the network. At another port it was started again."""
    remembered, heard = PeerAddress("ip4", "127.0.0.1", port, HONEST.peer), HONEST
    expected = [remembered] if port == heard.port else [remembered, heard]
    joined, last, is_over = list[PeerAddress](), address(9, "192.168.1.9"), asyncio.Event()

    async def check(address: PeerAddress) -> None:
        pass

    async def on_change(met: Met | None, text: str) -> None:
        assert met is not None
        joined.extend(met.answered)
        if joined == expected:
            sources.neighbours.hear(last)  # it comes after all that was heard before
        if last in joined:
            is_over.set()

    class Friendly(Alone):
        async def join(self, address: PeerAddress) -> None:
            self.num_neighbours = 1

    sources = Sources(has_lan=True, remembered=lambda: [remembered], check=check)
    sources.neighbours.hear(heard)
    running = asyncio.create_task(Joiner(Friendly(), sources, on_change, JoinTimes(min_pause_s=0.01)).run())
    try:
        async with asyncio.timeout(60):
            await is_over.wait()
    finally:
        running.cancel()
    assert joined == [*expected, last]


async def test_who_has_joined_looks_around_now_and_then_also_in_a_noisy_network() -> None:
    looked = asyncio.Semaphore(0)

    async def check(address: PeerAddress) -> None:
        raise PeerUnreachableError("silent")

    async def on_change(met: Met | None, text: str) -> None:
        pass

    class Seen(Alone):
        async def look_around(self) -> None:
            looked.release()

    dht, sources = Seen(), Sources(has_lan=True, check=check)
    dht.num_neighbours = 1
    times = JoinTimes(min_pause_s=0.01, look_around_s=0.1)
    running = asyncio.create_task(Joiner(dht, sources, on_change, times).run())
    try:
        async with asyncio.timeout(60):
            for number in range(3):
                await looked.acquire()
                sources.neighbours.hear(address(number, "192.168.2.1"))
    finally:
        running.cancel()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((one, True) for one in (BadRequestError, ProtocolVersionError, PrivateSwarmError, NotAllowedError)),
        *((one, False) for one in (OverloadedError, DeadlineError, DrainingError, InternalError)),
        *((one, False) for one in (PeerUnreachableError, UnauthenticatedError)),
    ],
)
def test_a_peer_that_is_busy_or_leaves_does_not_refuse_us(kind: type[SwarmError], expected: bool) -> None:
    assert is_refusal(kind("why")) is expected
