"""Prompts of open sequences, whose first tokens others can share.

A prompt that begins like one that is being computed, or answered, waits until the hops have answered the common tokens, and goes on as a
fork of it. So many requests with one long system prompt compute it once, also if they come at the same time.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from protocols.errors import SwarmError
from swarm.inference.client.session import Session
from swarm.thin.generation import TokenSequence

REFUSED_S = 60
"""Seconds without sharing after hops have refused a fork: a recurrent model keeps its newest state only, so a wait would be in vain."""


class OpenPrompts:
    """Those of one model. A prompt is shared only with its own owner: the time of an answer would tell others what was asked."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._open: dict[TokenSequence, tuple[str, array[int]]] = {}
        self._forks: set[TokenSequence] = set()
        self._refused_until_s = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, owner: str, prompt: Sequence[int], sequence: TokenSequence) -> None:
        """A sequence is about to compute `prompt`, and forgets none of it before `remove`."""
        self._open[sequence] = owner, array("i", prompt)

    def remove(self, sequence: TokenSequence) -> None:
        """It has ended. A second call changes nothing."""
        self._open.pop(sequence, None)
        if sequence in self._forks:
            self._forks.remove(sequence)
            if sequence.trips and not sequence.num_reused:
                self._refused_until_s = self._now_s() + REFUSED_S

    def longest(self, owner: str, prompt: Sequence[int]) -> tuple[int, TokenSequence | None]:
        """The length of the longest prefix that an open one shares with this prompt, and the sequence that has it, the oldest of several.

        The last token of `prompt` is always computed, so it does not count.
        """
        own = array("i", prompt)
        best, most = None, 0
        for sequence, (who, ids) in self._open.items() if self._now_s() >= self._refused_until_s else ():
            if who == owner and (count := min(num_common(ids, own), len(own) - 1)) > most:
                best, most = sequence, count
        return most, best

    async def fork(self, source: TokenSequence, prompt: Sequence[int]) -> TokenSequence | None:
        """A sequence that holds `prompt`, with which that of `source` begins, as soon as hops have answered it; None if they never will."""
        session = source.session
        assert isinstance(session, Session)
        began_s = self._now_s()
        try:
            if await session.has_answered(source.num_until(len(prompt))):
                twin = TokenSequence(await session.fork(len(prompt)), prompt)
                twin.timings.route_ms += (self._now_s() - began_s) * 1e3
                self._forks.add(twin)
                return twin
        except SwarmError:  # the source has failed since, or was closed
            pass
        self.remove(source)
        return None


def num_common(first: array[int], second: array[int]) -> int:
    """How many tokens both begin with, by bisection: a comparison of a few thousand takes a microsecond."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
