"""A server closes connections without calls, and too many of one address."""

from __future__ import annotations

import asyncio
import gc

import pytest

from protocols.errors import OverloadedError
from protocols.ids import PeerId
from swarm.rpc.admission import MAX_FRAMES_IN_PARTS, MAX_FRAMES_OF_ADDRESS, Admission, Arrivals
from swarm.rpc.caller import group_of, plain, remote_of
from swarm.rpc.connections import MAX_REFUSED, UNKNOWN_S, Connection, ConnectionLimits, Remote, surplus

LIMITS = ConnectionLimits(total=20, per_address=8)


def unknown(host: str, number: int, since_s: float = 100.0) -> dict[Remote, Connection]:
    return {(host, 1_000 + at): Connection(since_s + at / 1_000) for at in range(number)}


def busy(host: str, number: int, num_running: int = 1) -> dict[Remote, Connection]:
    return {(host, 5_000 + at): Connection(0.0, used_s=50.0 + at, num_running=num_running) for at in range(number)}


def test_a_connection_without_a_call_is_closed_after_a_while_and_a_used_one_never() -> None:
    known = {**unknown("192.0.2.1", 1), **busy("192.0.2.1", 1), **busy("192.0.2.2", 1, num_running=0)}
    assert surplus(known, 100.0 + UNKNOWN_S, LIMITS) == []
    assert surplus(known, 100.1 + UNKNOWN_S, LIMITS) == [("192.0.2.1", 1_000)]
    assert surplus(known, 1e9, LIMITS) == [("192.0.2.1", 1_000)]


def test_of_one_address_the_useless_go_first_and_of_these_the_oldest() -> None:
    known = {**unknown("192.0.2.1", 6), **busy("192.0.2.1", 3, num_running=0), **busy("192.0.2.2", 8)}
    assert surplus(known, 101.0, LIMITS) == [("192.0.2.1", 1_000)]
    more = {**known, **{("192.0.2.1", 9_000 + at): one for at, one in enumerate(busy("192.0.2.1", 7).values())}}
    assert {port for host, port in surplus(more, 101.0, LIMITS)} == {*range(1_000, 1_006), 5_000, 5_001}


def test_when_all_have_too_many_the_address_with_most_loses_first() -> None:
    known = {**unknown("192.0.2.1", 8), **unknown("192.0.2.2", 8), **unknown("192.0.2.3", 8), **busy("192.0.2.4", 1)}
    gone = surplus(known, 101.0, LIMITS)
    assert len(gone) == 5 and ("192.0.2.4", 5_000) not in gone
    left = [sum(host == f"192.0.2.{at}" for host, _ in known.keys() - set(gone)) for at in (1, 2, 3)]
    assert sorted(left) == [6, 6, 7]


def test_an_ipv6_network_counts_as_one_address_and_ipv4_has_one_spelling() -> None:
    known = {(f"2001:db8::{at:x}", 1): Connection(100.0) for at in range(1, 12)}
    assert len(surplus(known, 101.0, LIMITS)) == 3
    assert remote_of("ipv6:%5B2001:db8::1%5D:4002") == ("2001:db8::1", 4_002)
    assert remote_of("ipv4:192.0.2.1:4002") == ("192.0.2.1", 4_002)
    assert remote_of("ipv6:%5B::ffff:192.0.2.1%5D:4002") == ("192.0.2.1", 4_002)
    assert plain("::ffff:192.0.2.1") == "192.0.2.1" and plain("fe80::1%eth0") == "fe80::1"
    assert group_of("192.0.2.1") != group_of("192.0.2.2")


def test_whoever_tries_without_a_credential_again_and_again_is_closed() -> None:
    known = {("192.0.2.1", 1): Connection(100.0, num_refused=MAX_REFUSED), ("192.0.2.1", 2): Connection(100.0, num_refused=1)}
    assert surplus(known, 100.0, LIMITS) == [("192.0.2.1", 1)]


def test_limits_leave_descriptors_for_our_own_files() -> None:
    assert ConnectionLimits.of(1_024) == ConnectionLimits(total=512, per_address=128)
    assert ConnectionLimits.of(1 << 20).total == 8_192


def test_peer_ids_in_any_number_share_the_calls_of_their_address() -> None:
    admission = Admission(10, 3, 4)
    admitted = [admission.admitted(PeerId(f"peer{at}"), "192.0.2.1") for at in range(4)]
    for one in admitted:
        one.__enter__()
    with pytest.raises(OverloadedError, match="the limit of one address"), admission.admitted(PeerId("new"), "192.0.2.1"):
        pass
    with admission.admitted(PeerId("new"), "192.0.2.2"):
        pass
    admitted[0].__exit__(None, None, None)
    with admission.admitted(PeerId("new"), "192.0.2.1"):
        pass


async def test_first_messages_of_one_address_wait_for_each_other_and_not_for_those_of_others() -> None:
    arrivals, release = Arrivals(max_arriving=3, max_at_once=1), asyncio.Event()
    order: list[str] = []

    async def arrive(address: str, name: str) -> None:
        async with arrivals.turn(address):
            order.append(name)
            await release.wait()

    tasks = [asyncio.create_task(arrive("a", str(at))) for at in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await arrive("a", "too many")
    tasks.append(asyncio.create_task(arrive("b", "other")))
    await asyncio.sleep(0)
    assert order == ["0", "other"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["0", "other", "1", "2"] and not arrivals._arriving and not arrivals._turns


async def test_one_frame_in_parts_of_each_peer_arrives_at_a_time() -> None:
    arrivals, entered, release = Arrivals(), [], asyncio.Event()

    async def send(peer: str) -> None:
        async with arrivals.in_parts(PeerId(peer), f"address of {peer}"):
            entered.append(peer)
            await release.wait()

    tasks = [asyncio.create_task(send(peer)) for peer in ("a", "a", "a", "b")]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert entered == ["a", "b"]
    tasks[1].cancel()
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    del tasks
    await asyncio.sleep(0)
    gc.collect()  # the one that was cancelled knows its lock
    assert entered == ["a", "b", "a"] and not arrivals._senders


async def test_frames_in_parts_of_one_address_leave_room_for_those_of_others() -> None:
    """A PeerID costs nothing: eight of one address held all places, a minute at a time."""
    arrivals, entered, release = Arrivals(), [], asyncio.Event()

    async def send(peer: str, address: str) -> None:
        async with arrivals.in_parts(PeerId(peer), address):
            entered.append(peer)
            await release.wait()

    many = [asyncio.create_task(send(f"many {at}", "a")) for at in range(2 * MAX_FRAMES_IN_PARTS)]
    other = asyncio.create_task(send("other", "b"))
    await asyncio.sleep(0.01)
    assert entered == ["many 0", "many 1", "other"] and MAX_FRAMES_OF_ADDRESS == 2
    release.set()
    await asyncio.gather(*many, other)
    assert len(entered) == 2 * MAX_FRAMES_IN_PARTS + 1 and not arrivals._senders and not arrivals._frames_of_address
