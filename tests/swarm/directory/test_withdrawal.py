"""A withdrawal while an announcement is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from protocols.entries import SignedEntry
from protocols.identity import from_seed
from protocols.ids import PeerId
from protocols.records import PeerRecord
from swarm.directory.directory import Directory

PEER = from_seed(b"1" * 32).peer_id
RECORD = PeerRecord(peer=PEER, name="alice", software="test", addresses=("127.0.0.1:1",), certificate=b"", state="serving")


class SlowBook:
    """Stores once `go` is set; a withdrawal at once. Of one key, the entry that expires last stays, as in the DHT."""

    def __init__(self) -> None:
        self.go, self.asked = asyncio.Event(), asyncio.Event()
        self.entries: dict[str, tuple[float, bytes]] = {}

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = 0.0) -> bool:
        if payload:
            self.asked.set()
            await self.go.wait()
        self.entries[key] = max(self.entries.get(key, (0.0, b"")), (expires_s, payload))
        return True

    async def get(self, keys: Sequence[str], timeout_s: float = 0.0) -> Mapping[str, Mapping[PeerId, SignedEntry]]:
        return {key: {PEER: SignedEntry(payload, expires_s)} for key, (expires_s, payload) in self.entries.items() if key in keys}


async def test_it_does_not_wait_for_the_announcement_and_is_what_stays() -> None:
    book = SlowBook()
    directory = Directory("test", PEER, book)
    announcing = asyncio.create_task(directory.announce(lambda: RECORD, ("tiny",)))
    await book.asked.wait()
    refreshing = asyncio.create_task(directory.refresh())  # waits for the announcement
    await asyncio.sleep(0)
    await directory.withdraw()
    assert len(book.entries) == 2 and not any(payload for _, payload in book.entries.values())
    book.go.set()
    await announcing
    assert not await refreshing and not any(task.get_name() == "directory renewal" for task in asyncio.all_tasks())
    assert not any(payload for _, payload in book.entries.values()), "the late announcement does not replace it"
