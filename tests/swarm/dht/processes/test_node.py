"""Real members find what one stores, and nothing that a liar stores."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hivemind.dht.routing import DHTID
from hivemind.p2p import P2P, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.serializer import MSGPackSerializer

from protocols.entries import SignedEntry, key_id, seal
from protocols.errors import PeerUnreachableError
from protocols.identity import from_seed
from protocols.ids import PeerId
from protocols.records import signed_bytes
from swarm.dht import node
from swarm.dht.address import PeerAddress
from swarm.dht.node import Dht
from swarm.meter import Meter
from tests.swarm.dht.nodes import address_of, member, members
from tests.virtual_time import Shifted

KEY = "key"


def name(dht: Dht) -> PeerId:
    return dht._identity.peer_id


async def payloads(dht: Dht, key: str = KEY) -> dict[PeerId, bytes]:
    return {peer: entry.payload for peer, entry in (await dht.get([key]))[key].items()}


async def push(liar: Dht, target: Dht, subkey: object, value: bytes, expires_s: float) -> bool:
    """A store as a peer without our rules would send it."""
    key = DHTID.generate(KEY)
    answer = await liar._running.call_store(target._running.peer_id, [key], [value], [expires_s], subkeys=[subkey])
    assert answer is not None, "the store did not arrive, so this would show nothing"
    return bool(answer[0])


def sealed(author: Dht, payload: bytes, expires_s: float) -> bytes:
    packed = MSGPackSerializer.dumps(payload)
    subkey = MSGPackSerializer.dumps(str(name(author)))
    return packed + author._identity.sign(signed_bytes(DHTID.generate(KEY).to_bytes(), subkey, packed, expires_s))


async def test_after_a_start_again_nothing_is_said_to_be_there_before_a_member_is_met() -> None:
    """Its routing table and its shelf are empty; the records of others are not gone for that."""
    async with members(2) as (first, again):
        await first.store(KEY, b"there", time.time() + 60)
        await again.stop()
        await again.start()
        with pytest.raises(PeerUnreachableError, match="no member of it has been joined yet"):
            await again.get([KEY])
        await again.join(address_of(first))
        assert await payloads(again) == {name(first): b"there"}
        await again.stop()
        await again.start()
        again.go_on_alone()
        assert await again.get([KEY]) == {KEY: {}}


async def test_what_each_says_everybody_finds_even_after_the_first_has_gone() -> None:
    async with members(5) as dhts:
        for number, dht in enumerate(dhts):
            assert await dht.store(KEY, b"%d" % number, time.time() + 60)
        for dht in dhts:
            assert await payloads(dht) == {name(other): b"%d" % number for number, other in enumerate(dhts)}
        await dhts[0].stop()
        assert len(await payloads(dhts[4])) == 5
        assert await dhts[4].store("later", b"x", time.time() + 60)
        assert await payloads(dhts[1], "later") == {name(dhts[4]): b"x"}


async def test_a_later_word_wins_and_an_older_one_does_not() -> None:
    async with members(3) as (one, two, three):
        now_s = time.time()
        assert await one.store(KEY, b"first", now_s + 30)
        assert await one.store(KEY, b"second", now_s + 60)
        assert not await one.store(KEY, b"third", now_s + 45)
        assert await payloads(two) == await payloads(three) == {name(one): b"second"}


async def test_forged_and_plain_values_reach_nobody() -> None:
    async with members(3) as (alice, mallory, bob):
        now_s = time.time()
        assert await alice.store(KEY, b"true", now_s + 60)
        forged = sealed(mallory, b"false", now_s + 90)
        for target in (alice, bob):
            assert not await push(mallory, target, str(name(alice)), forged, now_s + 90)
            assert not await push(mallory, target, None, forged, now_s + 90)
            assert not await push(mallory, target, None, MSGPackSerializer.dumps("plain"), now_s + 90)
            assert not await push(mallory, target, str(name(mallory)), b"\xc1 does not unpack", now_s + 90)
        assert await payloads(bob) == await payloads(alice) == {name(alice): b"true"}


async def test_only_the_author_stores_its_entry() -> None:
    """Else one peer could store thousands of entries of made-up authors; a copy of a true one is refused, too."""
    async with members(3) as (alice, mallory, bob):
        now_s = time.time()
        true = sealed(alice, b"true", now_s + 60)
        assert not await push(mallory, bob, str(name(alice)), true, now_s + 60)
        assert await payloads(bob) == {}
        assert await push(alice, bob, str(name(alice)), true, now_s + 60)
        assert await payloads(bob) == {name(alice): b"true"}


async def test_a_replay_of_an_older_word_does_not_end_the_newer_one_early() -> None:
    time_passes = Shifted()
    async with members(3, clock=time_passes.clock()) as (alice, _other, bob):
        now_s = time.time()
        old = sealed(alice, b"old", now_s + 60)
        assert await alice.store(KEY, b"new", now_s + 85)
        assert not await push(alice, bob, str(name(alice)), old, now_s + 60)  # even by the author itself
        time_passes.ahead_s = now_s + 61 - time.time()  # the replayed one has expired
        assert await payloads(bob) == {name(alice): b"new"}


async def test_a_member_that_says_nothing_delays_but_hides_nothing() -> None:
    """What others told before the time was over counts."""
    async with members(4) as (alice, bob, silent, looking):
        assert await alice.store(KEY, b"true", time.time() + 60)
        for unary in list(silent._running.p2p._client.control.unary_handlers):
            silent._running.p2p._client.control.unary_handlers[unary] = _never
        assert {peer: entry.payload for peer, entry in (await looking.get([KEY], 5.0))[KEY].items()} == {name(alice): b"true"}
        assert await bob.store(KEY, b"too", time.time() + 60, 8.0)
        assert set(await payloads(alice)) == {name(alice), name(bob)}


@pytest.mark.parametrize("by", ["it is joined", "it calls"])
async def test_a_member_that_was_silent_is_a_neighbour_again_once_it_answers(by: str) -> None:
    async with members(2) as (one, two):
        one._running.leave_alone(two._running.peer_id)
        async with asyncio.timeout(60):
            while one.num_neighbours:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        if by == "it is joined":
            await one.join(address_of(two))
        else:  # it calls, and answers the question that this causes
            await two.get([KEY])
        async with asyncio.timeout(60):
            while not one.num_neighbours:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not one._running.is_silent(two._running.peer_id)


async def _never(*_: object) -> bytes:
    await asyncio.sleep(3_600)
    return b""


async def test_what_has_expired_is_gone() -> None:
    time_passes = Shifted()
    async with members(2, clock=time_passes.clock()) as (one, two):
        assert await one.store(KEY, b"brief", time.time() + 60)
        assert await payloads(two)
        time_passes.ahead_s = 60
        assert await payloads(two) == {}


@pytest.mark.parametrize("poison", ["bad entries", "no dictionary", "too long a life"])
async def test_a_replica_that_answers_nonsense_hangs_nobody_and_hides_nobody(
    poison: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar's own shelf holds what our rules would never let in."""
    async with members(3) as (alice, liar, bob):
        assert await alice.store(KEY, b"true", time.time() + 60)
        if poison == "no dictionary":
            monkeypatch.setattr("swarm.dht.protocol.dictionary.pack", lambda told: b"\xc1")
        key, life_s = key_id(KEY), 3_600 if poison == "too long a life" else 60
        for number in range(300):
            author = from_seed(number.to_bytes(32))
            entry = seal(author, key, b"lie", time.time() + life_s)
            if poison == "bad entries":
                entry = SignedEntry(entry.value[:-1] + b"?", entry.expires_s)
            liar._running.shelf.put(key, author.peer_id, entry, "local")
        async with asyncio.timeout(50):  # the time that it could take is longer
            found = await payloads(bob)
        assert (found == {name(alice): b"true"}) if poison != "no dictionary" else set(found) <= {name(alice)}


async def test_a_client_reads_and_is_met_by_nobody() -> None:
    async with members(2) as (one, two), member(client_mode=True) as client:
        await client.join(address_of(two))
        await one.store(KEY, b"x", time.time() + 60)
        assert await payloads(client) == {name(one): b"x"}
        assert client.addresses == ()
        assert one.num_neighbours == two.num_neighbours == 1


async def test_an_address_where_nobody_or_somebody_else_is_is_a_typed_error() -> None:
    async with member() as one, member() as two, members(1) as (other,):
        right = address_of(one)
        for wrong in (
            PeerAddress(right.kind, right.host, right.port, name(other)),
            PeerAddress("ip4", "127.0.0.1", 1, name(one)),
        ):
            with pytest.raises(PeerUnreachableError):
                await two.join(wrong)
        assert two.num_neighbours == 0
        await two.join(right)
        assert two.num_neighbours == 1


async def test_a_stopped_member_says_so() -> None:
    async with members(1) as (one,):
        await one.stop()
        for call in (one.get([KEY]), one.store(KEY, b"x", time.time() + 60), one.look_around()):
            with pytest.raises(PeerUnreachableError, match="not running"):
                await call


# --- what one caller may cost, and whom we go on asking


async def test_one_caller_stores_only_so_much_in_a_while() -> None:
    async with members(3) as (holder, greedy, other):
        holder._running._stores = Meter(3, 60.0)
        expires_s = time.time() + 60
        for _ in range(3):
            assert not await push(greedy, holder, str(name(greedy)), b"nonsense", expires_s)
        assert not await push(greedy, holder, str(name(greedy)), sealed(greedy, b"true", expires_s), expires_s)
        assert await push(other, holder, str(name(other)), sealed(other, b"true", expires_s), expires_s)


@pytest.mark.parametrize(("meter", "limit"), [("_finds", 2), ("_found_bytes", 400)])
async def test_one_caller_is_told_only_so_much_in_a_while(meter: str, limit: int) -> None:
    """Then only who is near."""
    async with members(1) as (holder,), member(client_mode=True) as greedy, member(client_mode=True) as other:
        assert await holder.store(KEY, b"x", time.time() + 60)
        for client in (greedy, other):
            await client.join(address_of(holder))
        setattr(holder._running, meter, Meter(limit, 60.0))
        told = [await payloads(greedy) for _ in range(4)]
        assert told[0] == {name(holder): b"x"} and told[-1] == {}
        assert await payloads(other) == {name(holder): b"x"} and greedy.num_neighbours == 1


async def test_one_caller_is_pinged_back_only_so_often() -> None:
    async with members(3) as (asked, greedy, other):
        asked._running._pings = Meter(2, 60.0)
        answers = [await greedy._running.call_ping(asked._running.peer_id) for _ in range(3)]
        assert [answer is not None for answer in answers] == [True, True, False]
        assert await other._running.call_ping(asked._running.peer_id) is not None


async def test_a_member_that_we_joined_by_is_asked_though_it_is_no_neighbour_and_rests_if_it_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    time_passes = Shifted()
    async with member() as anchor, member(clock=time_passes.clock()) as looking:
        await looking.join(address_of(anchor))
        protocol, peer = looking._running, anchor._running.peer_id
        asked: list[object] = []
        ask = protocol.ask

        async def recorded(one: object, keys: object) -> object:
            asked.append(one)
            return await ask(one, keys)  # type: ignore[arg-type]

        monkeypatch.setattr(protocol, "ask", recorded)
        await protocol.update_routing_table(None, peer, responded=False)
        assert looking.num_neighbours == 0 and await looking.get([KEY]) and asked == [peer]
        protocol.leave_alone(peer)
        await looking.get([KEY])
        protocol.take_back(peer)
        asked.clear()
        assert await looking.get([KEY]) and asked == [], "it rests"
        time_passes.ahead_s = node.ANCHOR_REST_S
        assert await looking.get([KEY]) and asked == [peer]


async def test_an_answer_that_comes_with_the_end_of_its_time_makes_nobody_deaf() -> None:
    """A process that was stopped finds both at once: the deadline has passed, and the answer is there."""
    async with elsewhere() as other, member() as asking:
        await asking.join(other)
        control, peer = asking._running.p2p._client.control, PeerID.from_base58(other.peer)
        for _ in range(20):
            soon = asyncio.create_task(asyncio.sleep(0.001))  # the question is on its way by then
            soon.add_done_callback(lambda _: time.sleep(0.1))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asking._running.get_stub(peer).rpc_ping(dht_pb2.PingRequest())
        assert not control._read_task.done()
        assert await asking._running.call_ping(peer)


async def test_a_daemon_that_is_heard_no_more_counts_as_ended() -> None:
    async with member() as dht:
        control = dht._running.p2p._client.control
        died = asyncio.create_task(dht.died())
        await asyncio.sleep(0)
        assert not died.done()
        control._read_task.cancel()
        async with asyncio.timeout(60.0):
            await died


async def test_a_daemon_that_we_end_says_so_and_ending_it_again_is_harmless() -> None:
    async with member() as dht:
        dht.end_daemon()
        async with asyncio.timeout(60.0):
            assert await dht.died()
            await dht._running.p2p._child.wait()
        dht.end_daemon()
        await dht.stop()
        await dht.start()
        dht._running.p2p._child.kill()
        async with asyncio.timeout(60.0):
            assert not await dht.died(), "this one was not ended by us"


async def test_a_member_to_which_a_client_is_connected_is_not_alone() -> None:
    async with member() as dht, member(client_mode=True) as client:
        assert await dht.is_alone()
        await client.join(address_of(dht))
        assert dht.num_neighbours == 0 and not await dht.is_alone()


@pytest.mark.parametrize("is_stuck", [False, True])
async def test_a_start_that_fails_leaves_no_daemon(is_stuck: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that is stuck keep it waiting."""
    children: list[asyncio.subprocess.Process] = []
    sockets_of: list[Path] = []

    async def fails(p2p: P2P, **_: object) -> None:
        children.append(p2p._child)
        sockets_of.append(Path(str(p2p._daemon_listen_maddr).removeprefix("/unix")))
        assert sockets_of[0].exists()
        if is_stuck:
            p2p._child.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, p2p._child.pid, os.WSTOPPED | os.WNOWAIT)  # noqa: ASYNC222  at once
        raise OverflowError("a fault of ours")

    monkeypatch.setattr(P2P, "get_visible_maddrs", fails)
    with pytest.raises(OverflowError):
        async with member():
            pass
    ended_by = children[0].returncode  # after SIGTERM: 0, 143 or -15; p2pd promises none of them
    assert ended_by is not None and (ended_by == -signal.SIGKILL) is is_stuck
    assert not sockets_of[0].exists()


@contextlib.asynccontextmanager
async def elsewhere() -> AsyncIterator[PeerAddress]:
    """A member on an event loop of its own, which answers while ours stands still."""
    found: queue.Queue[PeerAddress] = queue.Queue()
    over = threading.Event()

    async def live() -> None:
        async with member() as dht:
            found.put(address_of(dht))
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    try:
        yield await asyncio.to_thread(found.get, True, 60.0)
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
