"""A thin peer hears by gRPC what DHT members announce."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.errors import BadRequestError, ConfigError, PeerUnreachableError
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.dht.address import PeerAddress
from swarm.meeting import known_peers
from swarm.meeting.bootstrap import FindConfig
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.peer.thin_peer import ThinPeer
from tests.hosting import hosted


def record(peer: Peer) -> PeerRecord:
    span = hosted(ModelId("tiny", "a" * 64), Span(0, 4), 4)
    return PeerRecord(peer=peer.peer_id, addresses=peer.addresses, certificate=peer.certificate, hosted=span)


async def test_it_sees_what_peers_announce_and_goes_on_when_the_given_one_has_gone(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path)) as one, Peer(PeerConfig(data_dir=tmp_path, bootstrap=one.multiaddrs)) as two:
        await two.joined()
        await one.directory.announce(lambda: record(one), ["tiny"])
        await two.directory.announce(lambda: record(two), ["tiny"])
        async with ThinPeer(two.multiaddrs) as thin:
            snapshot = await thin.directory.snapshot("tiny")
            assert {peer.peer for peer in snapshot.peers} == {one.peer_id, two.peer_id}
            assert await thin.directory.models() == {"tiny": 2}
            await two.__aexit__()
            assert one.peer_id in {peer.peer for peer in (await thin.directory.snapshot("tiny")).peers}
            assert one.peer_id in thin.directory.sources


async def test_what_is_wrong_with_the_given_peer_is_one_line(tmp_path: Path) -> None:
    async with Peer(PeerConfig(data_dir=tmp_path, swarm="theirs")) as peer:
        with pytest.raises(BadRequestError, match="different swarms, 'ours' and 'theirs'"):
            async with ThinPeer(peer.multiaddrs, swarm="ours"):
                pass
        address = peer.multiaddrs[0]
    with pytest.raises(PeerUnreachableError, match=r"no peer of the swarm answers: .*check --peer"):
        async with ThinPeer((address,)):
            pass
    with pytest.raises(ConfigError, match="no peer to ask"):
        ThinPeer(())


async def test_whoever_was_met_once_is_found_without_an_address(tmp_path: Path) -> None:
    dead = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQyghzNm3dd2BoC926uxmm2Yck5hqypAagttkaPRaDtKr"
    find = FindConfig(known_peers=known_peers.file_of(tmp_path, "public"))
    async with Peer(PeerConfig(data_dir=tmp_path)) as node:
        await node.directory.announce(lambda: record(node), ["tiny"])
        async with ThinPeer(node.multiaddrs, find=find):
            pass
        for named in ((), (dead,)):
            async with ThinPeer(named, find=find) as thin:
                assert await thin.directory.models() == {"tiny": 1}


async def test_a_node_that_was_started_again_is_asked_at_its_new_port(tmp_path: Path) -> None:
    """Also while its old one is remembered."""
    file = known_peers.file_of(tmp_path, "public")
    async with Peer(PeerConfig(data_dir=tmp_path)) as node:
        await node.directory.announce(lambda: record(node), ["tiny"])
        now = [PeerAddress.parse(address) for address in node.multiaddrs]
        before = [replace(address, port=1) for address in now]
        for order in ([*now, *before], [*before, *now]):
            file.unlink(missing_ok=True)
            known_peers.update(file, order, (), time.time())
            async with ThinPeer((), find=FindConfig(known_peers=file)) as thin:
                assert await thin.directory.models() == {"tiny": 1}
