"""A thin peer closes all its parts, also if one fails."""

from __future__ import annotations

import asyncio

import pytest

from swarm.peer.thin_peer import ThinPeer

SOMEWHERE = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWQyghzNm3dd2BoC926uxmm2Yck5hqypAagttkaPRaDtKr"


def held(peer: ThinPeer) -> list[str]:
    """What `peer` has let go of, in order, as it comes."""
    gone: list[str] = []
    peer._held.callback(gone.append, "identity")
    close = peer.pool.close

    async def closed() -> None:
        await close()
        gone.append("connections")

    peer.pool.close = closed  # type: ignore[method-assign]
    return gone


async def test_if_nothing_can_be_written_down(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = ThinPeer((SOMEWHERE,))
    gone = held(peer)

    def fails() -> None:
        raise RuntimeError("no more threads")

    monkeypatch.setattr(peer.finder, "write_down", fails)
    with pytest.raises(RuntimeError, match="no more threads"):
        await peer.close()
    assert gone == ["connections", "identity"]


async def test_if_it_is_cancelled_while_its_tasks_end() -> None:
    peer, is_ending, never = ThinPeer((SOMEWHERE,)), asyncio.Event(), asyncio.Event()
    gone, has_begun = held(peer), asyncio.Event()

    async def ends_slowly() -> None:
        has_begun.set()
        try:
            await never.wait()
        finally:
            is_ending.set()
            await never.wait()

    peer._tasks.keep(ends_slowly())
    await has_begun.wait()
    closing = asyncio.create_task(peer.close())
    await is_ending.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert gone == ["connections", "identity"]
