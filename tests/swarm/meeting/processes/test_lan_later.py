"""Machines whose network comes late meet by mDNS."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from swarm.lan import mdns
from tests.end_to_end.bridge import Bridge, BridgeError
from tests.forked import Child, ForkServer

PEER = """
import asyncio, sys
from pathlib import Path
from swarm.meeting import bootstrap
from swarm.meeting.bootstrap import FindConfig
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer

bootstrap.LAN_AGAIN_S = 0.2

async def main():
    config = PeerConfig(data_dir=Path(sys.argv[1]), listen=("0.0.0.0", 0), find=FindConfig(lan=True), watch_s=0.2)
    async with asyncio.timeout(60), Peer(config) as peer:
        await peer.joined(10)
        print("alone" if not peer.num_neighbours else "has met", flush=True)
        while not (peer.num_neighbours and peer.addresses[0].startswith("10.83.")):
            await asyncio.sleep(0.1)
        print(*peer.multiaddrs, flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""

LISTENER = """
import asyncio, sys
from protocols.identity import from_seed
from swarm.meeting.bootstrap import FindConfig, Finder

async def main():
    finder, heard = Finder(FindConfig(lan=True), from_seed(b"1" * 32).peer_id, None), set()
    listening = asyncio.create_task(finder.run_lan(tuple, heard.add))
    await finder.can_hear()
    print("hears", flush=True)
    async with asyncio.timeout(60):
        while len(heard) < 2:
            await asyncio.sleep(0.1)
    print(*sorted(map(str, heard)), flush=True)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not mdns.is_installed(), reason="the extra `lan` is not installed")
def test_machines_whose_network_comes_later_meet_and_are_heard_by_others(tmp_path: Path, fork_server: ForkServer) -> None:
    """Machine 0 has only its loopback address at first, as after booting; machine 1 has no address at all."""
    try:
        with Bridge(3) as bridge:
            _ip(bridge, 0, "address", "flush", "dev", "lan0")
            _ip(bridge, 1, "address", "flush", "dev", "lan0")
            _ip(bridge, 1, "link", "set", "lo", "down")
            _meet_later(bridge, tmp_path, fork_server)
    except BridgeError as error:
        pytest.skip(f"no network namespaces on a bridge here: {error}")


def _meet_later(bridge: Bridge, folder: Path, server: ForkServer) -> None:
    late = [_start(server, bridge, number, PEER, folder / str(number)) for number in (0, 1)]
    listener = _start(server, bridge, 2, LISTENER)
    try:
        assert [_line(child) for child in (*late, listener)] == ["alone", "alone", "hears"]
        _ip(bridge, 1, "link", "set", "lo", "up")
        for number in (0, 1):
            _ip(bridge, number, "address", "add", f"10.83.0.{number + 1}/24", "dev", "lan0")
        places = [_line(child) for child in late]  # both have met, and know where others reach them
        assert all(f"/ip4/10.83.0.{number + 1}/tcp/" in place for number, place in enumerate(places))
        assert _line(listener) == " ".join(sorted(places))
    finally:
        for child in (*late, listener):
            child.kill()


def _start(server: ForkServer, bridge: Bridge, number: int, code: str, *arguments: object) -> Child:
    network = bridge.network(number)
    try:
        return server.popen([code, *arguments], kind="code", stdin=subprocess.PIPE, stderr=2, network=network)
    finally:
        os.close(network)


def _line(child: Child) -> str:
    """The next line; `""` if the process has ended, as it does by itself within a minute or two."""
    assert child.stdout is not None
    return str(child.stdout.readline()).strip()


def _ip(bridge: Bridge, number: int, *words: str) -> None:
    subprocess.run(bridge.command(number, ["ip", *words]), check=True)
