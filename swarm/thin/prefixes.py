"""Ended sessions of one model, found by their first tokens.

This is the client's side of the prefix cache; `swarm/inference/kept_sessions.py` is the side of the hops.

Hops know a session by its client and id, not by its tokens: only the client knows which tokens they hold, and a client that lied about
them would mislead itself alone. So tokens are compared here, exactly, and not by a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.inference.session import Session

KEEP_S = 300
"""Seconds for which hops are asked to keep an ended session after its last use."""

MIN_TOKENS = 64
"""Fewer common tokens are computed anew: a fork takes a round trip more."""

MOST, MOST_TOKENS = 256, 1 << 18
"""Sessions that are remembered, and tokens of all of them: a session takes up to 1 KB for each token that was decoded."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `num_common` tokens of a prompt are those of an ended session, which has `num_tokens`."""

    session: Session
    num_common: int
    num_tokens: int


@dataclass(slots=True)
class _Ended:
    owner: str
    ids: array[int]
    num_tokens: int
    session: Session
    until_s: float


class Prefixes:
    """The most recently used last. Owners do not see each other's: the time of an answer would tell what others have asked."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._ended: list[_Ended] = []

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, owner: str, ids: Sequence[int], num_tokens: int, session: Session) -> None:
        """A session of `num_tokens` tokens, of which `ids` are the first, was kept. It takes the place of those that it continues."""
        own = array("i", ids)
        self._ended = [old for old in self._ended if not (old.owner == owner and len(old.ids) <= _common(old.ids, own))]
        self._ended.append(_Ended(owner, own, num_tokens, session, self._now_s() + KEEP_S))
        del self._ended[:-MOST]
        while len(self._ended) > 1 and sum(len(ended.ids) for ended in self._ended) > MOST_TOKENS:
            del self._ended[0]

    def longest(self, owner: str, ids: Sequence[int]) -> Prefix | None:
        """The ended session with the most tokens in common with a prompt, whose last token is always computed; the newest of several."""
        now_s, prompt = self._now_s(), array("i", ids)
        self._ended = [ended for ended in self._ended if ended.until_s > now_s]
        counts = [(_common(ended.ids, prompt), at) for at, ended in enumerate(self._ended) if ended.owner == owner]
        count, at = max(counts, default=(0, 0))
        if (count := min(count, len(ids) - 1)) < MIN_TOKENS:
            return None
        found = self._ended.pop(at)
        found.until_s = now_s + KEEP_S
        self._ended.append(found)
        return Prefix(found.session, count, found.num_tokens)


def _common(first: array[int], second: array[int]) -> int:
    """How many tokens both begin with, by bisection: a comparison of a few thousand takes a microsecond."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
