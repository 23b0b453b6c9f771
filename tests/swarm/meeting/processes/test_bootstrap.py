"""Peers that the user did not name: known ones and neighbours.

Peers of another swarm are ignored, and the log says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.errors import ConfigError, PeerUnreachableError
from protocols.identity import from_seed
from swarm.dht.address import PeerAddress
from swarm.dht.neighbourhood import Neighbourhood
from swarm.lan import mdns
from swarm.meeting import known_peers
from swarm.meeting.bootstrap import NOBODY_ELSE, FindConfig
from swarm.meeting.neighbours import Neighbours
from swarm.peer import peer as module
from swarm.peer import ports
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.peer.thin_peer import ThinPeer

NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQyghzNm3dd2BoC926uxmm2Yck5hqypAagttkaPRaDtKr"


def remembering(data: Path, swarm: str = "public") -> FindConfig:
    return FindConfig(known_peers=known_peers.file_of(data, swarm))


def client(find: FindConfig, *bootstrap: str) -> Peer:
    return Peer(PeerConfig(client_mode=True, listen=None, bootstrap=bootstrap, find=find))


async def met(peer: Peer) -> None:
    async with asyncio.timeout(60):
        while not peer.num_neighbours:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_whoever_was_met_once_is_found_without_an_address(tmp_path: Path) -> None:
    find = remembering(tmp_path)
    async with Peer(PeerConfig(data_dir=tmp_path)) as node:
        async with client(find, *node.multiaddrs):
            pass
        async with client(find) as again, client(find, NOBODY) as whose_given_peer_is_dead:
            assert again.num_neighbours and whose_given_peer_is_dead.num_neighbours
        texts: list[str] = []
        config = PeerConfig(data_dir=tmp_path, find=find, on_join=lambda _is_joined, text: texts.append(text))
        async with Peer(config) as second:
            await second.joined()
            assert second.num_neighbours and texts == ["joined: 1 of 1 remembered peers answer"]


@pytest.mark.parametrize("loses", ["forgets all", "starts its daemon again"])
async def test_a_client_whose_given_peers_are_gone_comes_back_by_those_that_it_has_met(loses: str, tmp_path: Path) -> None:
    """It keeps no file. The machine slept, say, so that no peer answered in time and all were forgotten."""
    async with (
        Peer(PeerConfig(data_dir=tmp_path)) as given,
        Peer(PeerConfig(data_dir=tmp_path, bootstrap=given.multiaddrs)) as other,
    ):
        await met(given)
        async with client(NOBODY_ELSE, *given.multiaddrs) as lonely:
            await lonely.hello(other.peer_id, other.addresses)
            await given.__aexit__()
            before = lonely._dht._running
            if loses == "forgets all":
                await forget(before)
                assert not lonely.num_neighbours
            else:
                before.p2p._child.kill()
                async with asyncio.timeout(60):
                    while lonely._dht._node in (before, None):  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
            await met(lonely)
            assert other.peer_id in neighbours_of(lonely._dht._running)


async def test_a_thin_client_begins_anew_by_those_that_it_has_met(tmp_path: Path) -> None:
    """As a gateway does for its page after an outage, and for each further model."""
    find = FindConfig(known_peers=tmp_path / "peers.txt")
    async with contextlib.AsyncExitStack() as stack:
        given, other = [await stack.enter_async_context(Peer(PeerConfig(data_dir=tmp_path))) for _ in range(2)]
        async with ThinPeer(given.multiaddrs, find=find) as client_of_both:
            await client_of_both.hello(other.peer_id, other.addresses)
        await given.__aexit__()
        async with ThinPeer(given.multiaddrs, find=find) as again:
            assert other.peer_id in again.directory.sources
            assert await again.directory.models() == {}


async def test_a_peer_that_is_back_is_met_though_the_daemon_would_not_dial_it_yet(tmp_path: Path) -> None:
    """After a failed dial, p2pd refuses to dial the same address for some seconds, and after many for minutes."""
    async with contextlib.AsyncExitStack() as stack:
        listen = "127.0.0.1", stack.enter_context(held_ports("127.0.0.1"))
        first = await stack.enter_async_context(Peer(PeerConfig(data_dir=tmp_path, listen=listen)))
        lonely = await stack.enter_async_context(client(NOBODY_ELSE, *first.multiaddrs))
        before = lonely._dht._running
        await first.__aexit__()
        await forget(before)
        async with asyncio.timeout(60):
            while "no connection to peer" not in lonely._contacts._joiner._last_failure:  # noqa: ASYNC110  # asked by gRPC: p2pd pauses
                await asyncio.sleep(0.02)
        again = await stack.enter_async_context(Peer(PeerConfig(data_dir=tmp_path, listen=listen)))
        assert again.multiaddrs == first.multiaddrs
        await met(lonely)
        assert lonely._dht._node is not before


@contextlib.contextmanager
def held_ports(host: str) -> Iterator[int]:
    """The lower one of two neighbouring ports, for a peer that goes and comes back.

    Sockets are bound to both, so the kernel gives them to no process that asks for any port. They do not listen, so a process that names
    the ports gets them. The port below is held if it is free: a peer that got it would take the next one for gRPC.
    """
    while True:
        with contextlib.ExitStack() as held:
            port: int = held.enter_context(ports._bound(host, 0)).getsockname()[1]
            try:
                held.enter_context(ports._bound(host, port + 1))
            except OSError:
                continue
            with contextlib.suppress(OSError):
                held.enter_context(ports._bound(host, port - 1))
            yield port
            return


def neighbours_of(member: Neighbourhood) -> set[str]:
    return {str(peer) for peer in member.routing_table.uid_to_peer_id.values()}


async def forget(member: Neighbourhood) -> None:
    """As if none had answered."""
    for peer in tuple(member.routing_table.uid_to_peer_id.values()):
        member.leave_alone(peer)
    while member.routing_table.uid_to_peer_id:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_the_memory_is_of_one_swarm_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Someone of another swarm now lives at a remembered place: no record of ours may reach its DHT."""
    monkeypatch.setattr(module, "JOIN_S", 6.0)
    async with Peer(PeerConfig(data_dir=tmp_path, swarm="theirs")) as outsider:
        file = known_peers.file_of(tmp_path, "public")
        known_peers.update(file, [PeerAddress.parse(outsider.multiaddrs[0])], [], 4e9)
        with caplog.at_level(logging.WARNING), pytest.raises(PeerUnreachableError, match="different swarms"):
            async with client(FindConfig(known_peers=file)):
                pass
        assert "is not for us" in caplog.text and outsider.num_neighbours == 0


async def test_neighbours_are_joined_when_they_are_heard_and_those_of_other_swarms_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """mDNS itself is in tests/end_to_end/test_lan.py: here is what becomes of what it says."""
    async with (
        Peer(PeerConfig(data_dir=tmp_path, swarm="theirs")) as outsider,
        Peer(PeerConfig(data_dir=tmp_path)) as friend,
        Peer(PeerConfig(data_dir=tmp_path)) as alone,
    ):
        liar = friend.multiaddrs[0].replace(friend.peer_id, outsider.peer_id)
        with caplog.at_level(logging.WARNING):
            for address in (outsider.multiaddrs[0], liar, NOBODY, friend.multiaddrs[0]):
                alone._contacts._sources.neighbours.hear(PeerAddress.parse(address))
            await met(alone)
            await met(friend)  # who was joined hears of it a moment later
        assert "different swarms" in caplog.text
        assert outsider.num_neighbours == 0 and friend.num_neighbours == 1


@pytest.mark.parametrize("thin", [False, True], ids=["full", "thin"])
async def test_a_dead_given_peer_is_named_before_remembered_ones_are_asked(thin: bool, tmp_path: Path) -> None:
    said: list[str] = []
    async with Peer(PeerConfig(data_dir=tmp_path)) as node:
        file = known_peers.file_of(tmp_path, "public")
        known_peers.update(file, [PeerAddress.parse(node.multiaddrs[0])], [], 4e9)
        find = FindConfig(known_peers=file, on_unnamed=lambda text: said.append(f"{node.num_neighbours} {text}"))
        async with ThinPeer([NOBODY], "public", find) if thin else client(find, NOBODY):
            pass
    assert len(said) == 1 and said[0].startswith("0 the given peer does not answer ("), said
    assert PeerAddress.parse(NOBODY).peer[-6:] in said[0] and said[0].endswith("asking 1 peer remembered from earlier")


async def test_neighbours_are_said_before_they_are_joined_and_left_alone_after_a_no(tmp_path: Path) -> None:
    said: list[str] = []
    asked: list[str] = []
    answers = [False, True]

    def ask(heard: str) -> bool:
        asked.append(heard)
        return answers[len(asked) - 1]

    find = FindConfig(on_unnamed=said.append, may_join=ask)
    async with (
        Peer(PeerConfig(data_dir=tmp_path)) as first,
        Peer(PeerConfig(data_dir=tmp_path)) as second,
        Peer(PeerConfig(data_dir=tmp_path, find=find)) as alone,
    ):
        alone._contacts._sources.neighbours.hear(PeerAddress.parse(first.multiaddrs[0]))
        async with asyncio.timeout(60):
            while not alone._contacts._joiner._ignored:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert alone.num_neighbours == 0 == first.num_neighbours and said == []
        alone._contacts._sources.neighbours.hear(PeerAddress.parse(second.multiaddrs[0]))
        await met(alone)
    assert asked == ["heard 1 node of swarm `public` on this network"] * 2
    assert said == [f"{asked[0]}: joining it; --no-lan to stay alone, --swarm NAME for a swarm of your own"]


def test_with_nobody_to_ask_the_way_out_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.lan.mdns.is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"--peer.*pip install '\.\[lan\]'"):
        FindConfig(known_peers=known_peers.file_of(tmp_path, "public"), lan=True).check(())
    with pytest.raises(ConfigError, match="leave out --no-lan"):
        FindConfig().check(())
    FindConfig().check((NOBODY,))
    monkeypatch.setattr("swarm.lan.mdns.is_installed", lambda: True)
    FindConfig(lan=True).check(())


@pytest.mark.parametrize("arguments", [["generate", "m", "x"], ["status"]])
def test_without_the_extra_the_commands_say_how_to_get_it(arguments: list[str], tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['libp2p'] = None\n"  # what an import of a package that is not installed finds
        "from node.cli.app import main\n"
        f"main([*{arguments!r}, '--data-dir', {str(tmp_path)!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "pip install '.[lan]'" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(not mdns.is_installed(), reason="the extra `lan` is not installed")
@pytest.mark.parametrize("first", ["hivemind", "libp2p"])
def test_py_libp2p_and_hivemind_live_in_one_process_whichever_comes_first(first: str) -> None:
    """Both define `crypto.pb.KeyType`, and protobuf refuses the second of one name."""
    lines = ["from swarm.lan import mdns; mdns.load(); mdns.load()", "import hivemind.proto.crypto_pb2 as theirs"]
    check = "from libp2p.crypto.pb import crypto_pb2 as ours; assert ours.PublicKey is not theirs.PublicKey"
    script = "\n".join([*(lines if first == "libp2p" else lines[::-1]), check])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


async def test_a_neighbour_that_is_silent_does_not_keep_a_thin_client_from_the_others(tmp_path: Path) -> None:
    """They were asked one after the other: a single silent one, heard first, cost all the time that there is."""
    async with Peer(PeerConfig(data_dir=tmp_path)) as node, ThinPeer(node.multiaddrs) as thin:
        with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
            port, heard, failures = silent.getsockname()[1] - 1, Neighbours(), list[str]()
            for number in range(20):
                peer = from_seed(number.to_bytes(32)).peer_id
                heard.hear(PeerAddress.parse(f"/ip4/127.0.0.{number + 1}/tcp/{port}/p2p/{peer}"))
            asking = asyncio.create_task(thin._first_of(heard, failures))
            await asyncio.sleep(0)
            heard.hear(PeerAddress.parse(node.multiaddrs[0]))
            async with asyncio.timeout(30):  # one after the other, they would take 40 s
                assert (await asking).peer == node.peer_id
