"""What a reader takes of many entries.

Signatures are checked within a budget, and a crowd gives a fair sample.

A signature costs 0.2 ms. Peers that we have met are checked first, then every teller's entries in turn, in its own order, so that one
that tells nonsense spends only its own share. No hivemind here: a thin client checks the same way.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from protocols.dictionary import Told
from protocols.entries import SignedEntry
from protocols.ids import PeerId

MAX_CHECKED = 1_000
"""Signatures checked for one look: 0.2 s. Those that were seen valid before cost nothing and do not count."""

CHUNK = 25
"""Signatures that are checked before other tasks of the event loop may run: 5 ms."""

_TURN = 1_000
"""Entries, checked or not, before other tasks of the event loop may run."""

Check = Callable[[PeerId, SignedEntry], bool]


async def newest_valid(
    told: Sequence[Told], check: Check, is_seen: Check, has_met: Callable[[PeerId], bool], budget: int = MAX_CHECKED
) -> dict[PeerId, SignedEntry]:
    """The newest of each author that it has signed, of what several members told about one key.

    check: is it the author's? is_seen: was that found before? has_met: whose entries go before those of others.
    """
    found: dict[PeerId, SignedEntry] = {}
    judged: set[tuple[PeerId, SignedEntry]] = set()
    num_checked = 0
    for number, (peer, entry) in enumerate(sorted(_in_turn(told), key=lambda item: not has_met(item[0]))):
        if number % _TURN == _TURN - 1:
            await asyncio.sleep(0)
        held = found.get(peer)
        if (held and held.expires_s >= entry.expires_s) or (peer, entry) in judged:
            continue
        judged.add((peer, entry))
        if not is_seen(peer, entry):
            if num_checked >= budget:
                continue
            num_checked += 1
            if num_checked % CHUNK == 0:
                await asyncio.sleep(0)
        if check(peer, entry):
            found[peer] = entry
    return found


def shuffled(entries: Mapping[PeerId, SignedEntry], me: PeerId, has_met: Callable[[PeerId], bool], rng: random.Random) -> Told:
    """Our own entry, then those of peers that have answered us, then others, drawn anew each time. For who takes the first of a crowd.

    How long an entry still lives says nothing: its author chose that.
    """
    drawn = list(entries.items())
    rng.shuffle(drawn)
    drawn.sort(key=lambda item: (item[0] != me, not has_met(item[0])))
    return drawn


def _in_turn(told: Sequence[Told]) -> Iterator[tuple[PeerId, SignedEntry]]:
    """The first of each, the second of each, …"""
    rounds: Iterable[tuple[tuple[PeerId, SignedEntry] | None, ...]] = itertools.zip_longest(*told)
    return (item for one in rounds for item in one if item is not None)
