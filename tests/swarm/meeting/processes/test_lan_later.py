"""A machine that had no network at first looks for neighbours later."""

from __future__ import annotations

import asyncio

import pytest

from protocols.identity import from_seed
from swarm.lan import mdns
from swarm.meeting import bootstrap
from swarm.meeting.bootstrap import FindConfig, Finder

ME = from_seed(b"1" * 32).peer_id


@pytest.mark.skipif(not mdns.is_installed(), reason="the extra `lan` is not installed")
async def test_neighbours_are_looked_for_again_until_there_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "LAN_AGAIN_S", 0.01)
    loop, is_up, failures = asyncio.get_running_loop(), asyncio.Event(), [OSError("no network"), OSError("no network")]

    class Socket:
        """In place of zeroconf's, which needs a network."""

        def __init__(self) -> None:
            if failures:
                raise failures.pop()
            loop.call_soon_threadsafe(is_up.set)

        def close(self) -> None:
            pass

    monkeypatch.setattr("zeroconf.Zeroconf", Socket)
    finder = Finder(FindConfig(lan=True), ME, None)
    speaking = asyncio.create_task(finder.run_lan((), None))
    async with asyncio.timeout(60.0):
        await finder.lan_is_up.wait()  # who waits for neighbours is not held up
        await is_up.wait()
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    assert not failures
