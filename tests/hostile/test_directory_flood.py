"""Every peer is found in a flooded directory.

The flood: made-up peers, junk keys and greedy questions. Nodes and libp2p are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from protocols.directory import DirectoryRequest
from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from swarm.dht import checking
from swarm.dht.protocol import MAX_KEYS
from swarm.dht.shelf import MAX_PER_KEY, MAX_PER_PREFIX_AND_KEY
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.peer.thin_peer import ThinPeer
from swarm.prefixes import prefix
from tests.hostile.flood import MODEL, Item, junk, made_up, mallory, random_node_id
from tests.hosting import hosted
from tests.swarm.dht.nodes import members

FLOOD = 8_000
JUNK = 8_500
"""8.5 MB."""

DEADLINE_S = 60.0


def record(peer: Peer) -> PeerRecord:
    span = hosted(MODEL, Span(0, 4), 4, ends=True)
    addresses, certificate = peer.addresses, peer.certificate
    return PeerRecord(peer=peer.peer_id, addresses=addresses, certificate=certificate, hosted=span, reachable=peer.reachable)


@contextlib.asynccontextmanager
async def nodes(folder: Path, count: int) -> AsyncIterator[list[Peer]]:
    """Nodes that serve the model; all joined by the first."""
    async with contextlib.AsyncExitStack() as stack:
        found: list[Peer] = []
        for _ in range(count):
            found.append(await stack.enter_async_context(node(folder, *found[:1])))
        yield found


@contextlib.asynccontextmanager
async def node(folder: Path, *bootstrap: Peer) -> AsyncIterator[Peer]:
    known = tuple(address for peer in bootstrap for address in peer.multiaddrs)
    async with Peer(PeerConfig(data_dir=folder, bootstrap=known)) as peer:
        if bootstrap:
            await peer.joined()
        await peer.directory.announce(lambda: record(peer), [MODEL.name])
        yield peer


_flood: list[Item] = []


def fresh_flood() -> list[Item]:
    """Made once, and again only if it would expire soon."""
    if not _flood or _flood[0].entry.expires_s < time.time() + 30:
        _flood[:] = made_up(FLOOD, "public", time.time() + 88)
    return _flood


def shelf(peer: Peer) -> int:
    return len(peer._dht._running.shelf)


async def found_by_thin_client(*asked: Peer) -> tuple[set[PeerId], float]:
    """Whom a client finds that has never been here, and how many seconds of processor this process spends on it."""
    began = time.process_time()
    async with ThinPeer(tuple(address for peer in asked for address in peer.multiaddrs)) as client:
        found = {one.peer for one in (await client.directory.snapshot(MODEL.name)).peers}
    return found, time.process_time() - began


async def appears(peer: Peer, *asked: Peer) -> None:
    """A client finds it; a look is repeated, as sessions and commands do."""
    async with asyncio.timeout(DEADLINE_S):
        while peer.peer_id not in (await found_by_thin_client(*asked))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_one_caller_can_neither_announce_made_up_peers_nor_fill_the_storage(tmp_path: Path) -> None:
    """8,000 signed records and 8.5 MB of junk by one PeerID: nothing is kept, a newcomer is found, in the time of before."""
    async with nodes(tmp_path, 2) as honest, mallory(*honest) as attacker:
        before, undisturbed_s = await found_by_thin_client(honest[0])
        assert before == {peer.peer_id for peer in honest}
        assert not any(await attacker.store(honest[0], fresh_flood()))
        assert not any(await attacker.store(honest[1], junk(attacker.identity, JUNK, time.time() + 80)))
        assert all(shelf(peer) <= 2 * len(honest) for peer in honest)  # a record and names of each that is honest
        async with node(tmp_path, honest[1]) as newcomer:
            after, flooded_s = await found_by_thin_client(honest[0])
            assert after == before | {newcomer.peer_id}
            assert flooded_s < 2 * undisturbed_s + 1.0


def push_as_sybils(target: Peer, items: list[Item], origins: list[str]) -> int:
    """As if every made-up peer had a connection of its own, which costs the attacker more; behind libp2p, this is what arrives."""
    keep = target._dht._running.keep
    return sum(
        keep(item.key, item.subkey, item.entry, item.author, origins[number % len(origins)]) for number, item in enumerate(items)
    )


async def test_a_flood_of_identities_hides_nobody(tmp_path: Path) -> None:
    """Before, a full key took nothing new for 15 minutes, and answers held the longest-lived first. Here all of the flood comes from
    the network of all peers, so that the bounds on networks do not help."""
    async with nodes(tmp_path, 2) as honest:
        _, undisturbed_s = await found_by_thin_client(honest[0])
        async with asyncio.timeout(DEADLINE_S):
            while not all(peer.reachable for peer in honest):  # noqa: ASYNC110  (dialled back: others have met them)
                await asyncio.sleep(0.05)
        for target in honest:
            assert push_as_sybils(target, fresh_flood(), [prefix("127.0.0.1")]) > 4_000, "the flood did not arrive"
            assert shelf(target) <= 8 * MAX_PER_KEY + 8 * len(honest)
        # a client that was never here finds all who served before the flood …
        after, flooded_s = await found_by_thin_client(honest[0])
        assert {peer.peer_id for peer in honest} <= after
        assert flooded_s < 2 * undisturbed_s + 2.0
        # … and who comes after it
        async with node(tmp_path, honest[1]) as newcomer:
            await appears(newcomer, honest[1])
            seen = await honest[0].directory.snapshot(MODEL.name)
            assert {peer.peer_id for peer in honest} <= {one.peer for one in seen.peers}


async def test_a_flood_from_a_few_networks_pushes_out_itself(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as (target,):
        networks = [prefix(f"8.8.{number}.8") for number in range(2)]
        assert push_as_sybils(target, fresh_flood()[: FLOOD // 2], networks) > 1_000, "the flood did not arrive"
        assert shelf(target) <= 8 * len(networks) * MAX_PER_PREFIX_AND_KEY + 2
        assert target.peer_id in (await found_by_thin_client(target))[0]


async def test_a_look_into_a_flooded_directory_checks_a_bounded_number_of_signatures() -> None:
    async with members(2) as (holder, reader):
        keep = holder._running.keep
        items = fresh_flood()
        assert sum(keep(one.key, one.subkey, one.entry, one.author, prefix("127.0.0.1")) for one in items) > 4_000
        found = await reader.get(DirectoryRequest(swarm="public", model=MODEL.name).all_keys())
        num_found = sum(map(len, found.values()))
        assert num_found == len(reader._signatures._seen) and checking.MAX_CHECKED // 2 < num_found <= checking.MAX_CHECKED


async def test_greedy_questions_are_refused_and_one_peer_is_one_neighbour(tmp_path: Path) -> None:
    async with nodes(tmp_path, 1) as (target,), mallory(target) as attacker:
        assert await attacker.find(target, [os.urandom(20)] * MAX_KEYS) is not None
        assert await attacker.find(target, [os.urandom(20) for _ in range(50_000)]) is None
        assert not any(await attacker.store(target, made_up(2_000, "public", time.time() + 80), batch=2_000))
        for _ in range(300):
            await attacker.find(target, [], random_node_id())
        assert target.num_neighbours <= 1
        assert (await found_by_thin_client(target))[0] == {target.peer_id}
