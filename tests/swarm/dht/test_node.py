"""Several real members: what one says the others find, and what a liar says nobody does."""

from __future__ import annotations

import asyncio
import time

import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.utils.serializer import MSGPackSerializer

from protocols.errors import PeerUnreachableError
from protocols.ids import PeerId
from protocols.records import signed_bytes
from swarm.dht.address import PeerAddress
from swarm.dht.node import Dht
from tests.swarm.dht.nodes import address_of, member, members

KEY = "key"


def name(dht: Dht) -> PeerId:
    return dht._identity.peer_id


async def payloads(dht: Dht, key: str = KEY) -> dict[PeerId, bytes]:
    return {peer: entry.payload for peer, entry in (await dht.get([key]))[key].items()}


async def push(liar: Dht, target: Dht, subkey: object, value: bytes, expires_s: float) -> bool:
    """A store as a peer without our rules would send it."""
    key = DHTID.generate(KEY)
    answer = await liar._running.protocol.call_store(target._running.peer_id, [key], [value], [expires_s], subkeys=[subkey])
    assert answer is not None, "the store did not arrive, so this would show nothing"
    return bool(answer[0])


def sealed(author: Dht, payload: bytes, expires_s: float) -> bytes:
    packed = MSGPackSerializer.dumps(payload)
    subkey = MSGPackSerializer.dumps(str(name(author)))
    return packed + author._identity.sign(signed_bytes(DHTID.generate(KEY).to_bytes(), subkey, packed, expires_s))


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


async def test_a_replay_of_an_older_word_does_not_end_the_newer_one_early() -> None:
    async with members(3) as (alice, mallory, bob):
        now_s = time.time()
        old = sealed(alice, b"old", now_s + 1.0)
        assert await alice.store(KEY, b"new", now_s + 60)
        for sender, target in ((mallory, alice), (mallory, bob), (bob, mallory)):
            assert not await push(sender, target, str(name(alice)), old, now_s + 1.0)
        await asyncio.sleep(
            max(0.0, now_s + 1.2 - time.time())
        )  # until the replayed one has expired: that is the thing under test
        assert await payloads(bob) == {name(alice): b"new"}


async def test_a_bad_entry_in_the_only_replica_does_not_cost_the_good_one() -> None:
    async with members(3) as (alice, replica, bob):
        assert await alice.store(KEY, b"true", time.time() + 60)
        key = DHTID.generate(KEY)
        for other in (alice, bob):
            del other._running.protocol.storage[key]
        held = replica._running.protocol.storage.get(key)
        held.value.data["x" * 52] = type(held)(b"\xc1" * 80, time.time() + 90)
        assert await payloads(bob) == {name(alice): b"true"}


async def test_what_has_expired_is_gone() -> None:
    async with members(2) as (one, two):
        expires_s = time.time() + 0.8
        assert await one.store(KEY, b"brief", expires_s)
        assert await payloads(two)
        await asyncio.sleep(max(0.0, expires_s + 0.05 - time.time()))  # expiry is the thing under test
        assert await payloads(two) == {}


@pytest.mark.parametrize("poison", ["bad entry", "no dictionary", "foreign types"])
async def test_a_replica_that_answers_nonsense_hangs_nobody_and_hides_nobody(poison: str) -> None:
    """The liar's own storage holds what our rules would never let in."""
    async with members(3) as (alice, liar, bob):
        assert await alice.store(KEY, b"true", time.time() + 60)
        key, later_s = DHTID.generate(KEY), time.time() + 90
        own = liar._running.protocol.storage
        if poison == "no dictionary":
            own.data[key] = type(next(iter(own.data.values())))(b"\xc1", later_s)
        else:
            nonsense = DictionaryDHTValue()
            entry = {"bad entry": ("x" * 52, b"\xc1" * 80), "foreign types": (7, "text")}[poison]
            nonsense.data[entry[0]] = type(own.get(key))(entry[1], later_s)
            nonsense.maxsize = "many" if poison == "foreign types" else float("inf")
            nonsense.frozen = True
            own.data[key] = type(own.get(key))(nonsense, later_s)
        began = time.monotonic()
        assert await payloads(bob) == {name(alice): b"true"}
        assert time.monotonic() - began < 3.0


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
