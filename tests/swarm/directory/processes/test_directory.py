"""Announcing and looking, over real DHT members."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import pytest

from protocols.directory import DirectoryRequest
from protocols.entries import SignedEntry, model_key, names_key
from protocols.errors import BadRequestError
from protocols.ids import ModelId, PeerId, Span, peer_id_of
from protocols.records import PeerRecord, bucket
from protocols.weights_id import Weights
from swarm.dht.node import Dht
from swarm.directory import directory as module
from swarm.directory.directory import Directory
from tests.hosting import hosted
from tests.swarm.dht.nodes import members
from tests.virtual_time import Shifted

MODEL = ModelId("tiny", "a" * 64)


def directory(dht: Dht, swarm: str = "test", **more: Any) -> Directory:
    return Directory(swarm, dht._identity.peer_id, dht, **more)


def record(dht: Dht, span: str, **changes: object) -> PeerRecord:
    served = hosted(MODEL, Span.parse(span), 4)
    return replace(PeerRecord(peer=dht._identity.peer_id, hosted=served), **changes)  # type: ignore[arg-type]


async def test_what_is_announced_is_seen_until_it_is_withdrawn() -> None:
    async with members(3) as (one, two, three):
        first, second, looking = map(directory, (one, two, three))
        await first.announce(lambda: record(one, "0:2"), ["tiny"])
        await second.announce(lambda: record(two, "2:4", state="joining"), ["tiny"])
        seen = await looking.snapshot("tiny")
        assert {peer.peer: peer.state for peer in seen.peers} == {
            one._identity.peer_id: "serving",
            two._identity.peer_id: "joining",
        }
        assert {str(one.span) for peer in seen.peers for one in peer.blocks(Weights(MODEL))} == {"0:2", "2:4"}
        assert await looking.models() == {"tiny": 2}
        await first.withdraw()
        assert [peer.peer for peer in (await looking.snapshot("tiny")).peers] == [two._identity.peer_id]
        assert await looking.models() == {"tiny": 1}
        await second.withdraw()
        await second.withdraw()  # harmless
        assert (await looking.snapshot("tiny")).peers == () and await looking.models() == {}


async def test_a_change_is_pushed_at_once() -> None:
    async with members(2) as (one, two):
        here, looking = directory(one), directory(two)
        state = "joining"
        await here.announce(lambda: record(one, "0:4", state=state), ["tiny"])
        for state in ("serving", "draining", "serving"):
            assert await here.refresh()
            assert (await looking.snapshot("tiny")).peers[0].state == state
        await here.withdraw()


async def test_an_announcement_is_renewed_before_it_expires() -> None:
    time_passes, said = Shifted(), list[float]()
    clock = time_passes.clock()
    async with members(2, clock=clock) as (one, two):
        here, looking = directory(one, clock=clock, life_s=60.0, renew_s=0.1), directory(two, clock=clock)

        def make() -> PeerRecord:
            said.append(time_passes.ahead_s)
            return record(one, "0:4")

        await here.announce(make, ["tiny"])
        for minutes in (0.0, 0.6, 1.2, 1.8):  # together longer than a life
            time_passes.ahead_s = minutes * 60
            async with asyncio.timeout(60):
                while said.count(time_passes.ahead_s) < 2:  # noqa: ASYNC110  (then the first of them is stored)
                    await asyncio.sleep(0.01)
            assert len((await looking.snapshot("tiny")).peers) == 1
        assert here._renewing
        here._renewing.cancel()  # as a death would
        time_passes.ahead_s += 61
        assert not (await looking.snapshot("tiny")).peers


async def test_swarms_and_models_do_not_mix() -> None:
    async with members(1) as (one,):
        here = directory(one, "blue")
        await here.announce(lambda: record(one, "0:4"), ["tiny"])
        assert len((await here.snapshot("tiny")).peers) == 1
        assert (await here.snapshot("other")).peers == ()
        assert (await directory(one, "red").snapshot("tiny")).peers == () and await directory(one, "red").models() == {}
        await here.withdraw()


async def test_what_a_peer_says_that_does_not_parse_hides_nobody() -> None:
    """Signed and bounded, so the DHT carries it; but it is no record, or one in another's name."""
    async with members(4) as (one, two, three, four):
        here = directory(one)
        await here.announce(lambda: record(one, "0:4"), ["tiny"])
        for liar, payload in ((two, b"\xc1"), (three, record(one, "0:1").encode()), (four, b"\x81\xa1v\x01")):
            key = model_key("test", "tiny", bucket(liar._identity.peer_id))
            assert await liar.store(key, payload, time.time() + 60)
            await liar.store(names_key("test", bucket(liar._identity.peer_id)), payload, time.time() + 60)
        seen = await directory(two).snapshot("tiny")
        assert [(peer.peer, peer.hosted[0].span) for peer in seen.peers] == [(one._identity.peer_id, Span(0, 4))]
        assert await directory(two).models() == {"tiny": 1}
        await here.withdraw()


async def test_a_crowd_is_sampled_ourselves_first_then_whom_we_have_met() -> None:
    peers = [peer_id_of(number.to_bytes(32)) for number in range(5_000)]
    entries = {peer: SignedEntry(b"v", 1e9 - number) for number, peer in enumerate(peers)}
    me, met, rng = peers[-1], set(peers[-20:-1]), random.Random(12)
    told = {DirectoryRequest(swarm="test", model="m").key(peer): {} for peer in peers}
    for peer, entry in entries.items():
        told[DirectoryRequest(swarm="test", model="m").key(peer)][peer] = entry

    class Crowd:
        async def get(self, keys: object, timeout_s: float = 0.0) -> dict[str, dict[PeerId, SignedEntry]]:
            return told

    here = Directory("test", me, Crowd(), lambda one: one in met, rng)  # type: ignore[arg-type]
    first, second = [await here._look("m") for _ in range(2)]
    assert first[0][0] == me and {peer for peer, _ in first[1:20]} == met
    assert len(first) == module.MAX_ENTRIES and {peer for peer, _ in first} != {peer for peer, _ in second}


def test_an_entry_ends_later_than_the_last_one_unless_the_clock_was_set_back() -> None:
    assert module._next_expiry(0.0, 1_000.0, 60.0) == 1_060.0
    assert module._next_expiry(1_060.0, 1_000.0, 60.0) == 1_060.001
    assert module._next_expiry(1_360.0, 1_000.0, 60.0) == 1_060.0  # 300 s back: no peer believes 1,360


async def test_a_model_that_is_no_longer_hosted_says_where_its_node_is_now() -> None:
    """The record stands under both names, also where only what belongs under a key is kept."""
    async with members(2, "test") as (one, two):
        here, looking = directory(one), directory(two)
        await here.announce(lambda: record(one, "0:4"), ["tiny"])
        other = replace(record(one, "0:4").hosted[0], weights=Weights(ModelId("big", "b" * 64)))
        await here.announce(lambda: record(one, "0:4", hosted=(other,)), ["big"])
        for name in ("tiny", "big"):
            (found,) = (await looking.snapshot(name)).peers
            assert [one.weights.model.name for one in found.hosted] == ["big"]
        await here.withdraw()
        assert (await looking.snapshot("tiny")).peers == (await looking.snapshot("big")).peers == ()


async def test_a_record_that_cannot_be_encoded_is_the_callers_fault() -> None:
    async with members(1) as (one,):
        here = directory(one)
        with pytest.raises(BadRequestError):
            await here.announce(lambda: record(one, "0:4", name="x" * 500), ["tiny"])
        await here.withdraw()
