"""Which of many claims is believed, and how many signatures that costs."""

from __future__ import annotations

import asyncio

from protocols.dictionary import Told
from protocols.entries import SignedEntry
from protocols.ids import PeerId, peer_id_of
from swarm.dht.checking import CHUNK, newest_valid

GOOD, BAD = b"good", b"bad"


def peer(number: int) -> PeerId:
    return peer_id_of(number.to_bytes(32))


class Checker:
    """Counts what it is asked; `seen` costs nothing."""

    def __init__(self, *seen: int) -> None:
        self.checked: list[PeerId] = []
        self._seen = {peer(number) for number in seen}

    def check(self, author: PeerId, entry: SignedEntry) -> bool:
        if author not in self._seen:
            self.checked.append(author)
        return entry.value == GOOD

    def is_seen(self, author: PeerId, entry: SignedEntry) -> bool:
        return author in self._seen

    async def of(self, *told: Told, budget: int = 1_000, met: int = 999_999) -> dict[PeerId, SignedEntry]:
        return await newest_valid(told, self.check, self.is_seen, lambda one: one == peer(met), budget)


def said(number: int, value: bytes = GOOD, expires_s: float = 10.0) -> tuple[PeerId, SignedEntry]:
    return peer(number), SignedEntry(value, expires_s)


async def test_the_newest_that_is_signed_counts_whoever_tells_it() -> None:
    found = await Checker().of([said(1, GOOD, 10), said(2)], [said(1, GOOD, 12)], [said(1, BAD, 99), said(3, BAD)])
    assert found == {peer(1): SignedEntry(GOOD, 12), peer(2): SignedEntry(GOOD, 10)}


async def test_the_same_word_of_many_tellers_is_checked_once() -> None:
    checker = Checker()
    await checker.of(*[[said(1), said(2, BAD)]] * 5)
    assert checker.checked == [peer(1), peer(2)]


async def test_one_that_tells_nonsense_spends_only_its_own_share() -> None:
    liar = [said(number, BAD) for number in range(1_000, 3_000)]
    honest = [[said(number) for number in range(40)] for _ in range(2)]
    checker = Checker()
    found = await checker.of(liar, *honest, budget=100)
    assert set(found) == {peer(number) for number in range(40)} and len(checker.checked) == 100


async def test_whom_we_have_met_and_what_was_seen_need_no_budget_of_luck() -> None:
    flood = [said(number) for number in range(1_000, 3_000)]
    checker = Checker(2)
    found = await checker.of([*flood, said(1), said(2)], budget=10, met=1)
    assert checker.checked[0] == peer(1) and len(checker.checked) == 10
    assert {peer(1), peer(2)} <= set(found)


async def test_the_event_loop_has_its_turns() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    running = asyncio.create_task(others())
    await Checker().of([said(number) for number in range(20 * CHUNK)])
    running.cancel()
    assert turns >= 19
