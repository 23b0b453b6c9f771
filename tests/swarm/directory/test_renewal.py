"""A record is renewed for as long as its peer runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from protocols.entries import SignedEntry
from protocols.errors import PeerUnreachableError
from protocols.identity import from_seed
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.directory import directory as module
from swarm.directory.directory import Directory

PEER = from_seed(b"1" * 32).peer_id
RECORD = PeerRecord(peer=PEER, name="alice", software="test", addresses=("127.0.0.1:1",), certificate=b"", state="serving")


class Failing:
    """Fails once for each of its errors, and stores then."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.has_stored = list(failures), asyncio.Event()

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = 0.0) -> bool:
        if self.failures:
            raise self.failures.pop()
        self.has_stored.set()
        return True

    async def get(self, keys: Sequence[str], timeout_s: float = 0.0) -> Mapping[str, Mapping[PeerId, SignedEntry]]:
        return {}


async def test_neither_a_dht_that_is_started_again_nor_a_fault_of_ours_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    book = Failing()
    directory = Directory("test", PEER, book, renew_s=0.01)
    await directory.announce(lambda: RECORD, ("tiny",))
    book.failures += [RuntimeError("a fault"), PeerUnreachableError("not running")]
    book.has_stored.clear()
    async with asyncio.timeout(60.0):
        await book.has_stored.wait()
    await directory.withdraw()
    assert not book.failures


async def test_the_first_announcement_needs_no_dht(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    book = Failing(PeerUnreachableError("not running"))
    directory = Directory("test", PEER, book, renew_s=0.01)
    await directory.announce(lambda: RECORD, ("tiny",))
    async with asyncio.timeout(60.0):
        await book.has_stored.wait()
    await directory.withdraw()
