"""Sessions of one model, found by their first tokens.

This is the client's side of the prefix cache; `swarm/inference/hop/kept_sessions.py` is the side of the hops.

Hops know a session by its client and id, not by its tokens: only the client knows which tokens they hold, and a client that lied about
them would mislead itself alone. So tokens are compared here, exactly, and not by a hash.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarm.inference.client.session import Session
from swarm.thin.open_prompts import OpenPrompts, num_common

KEEP_S = 300
"""Seconds for which hops are asked to keep an ended session after its last use."""

MIN_TOKENS = 64
"""Fewer common tokens are computed anew: a fork takes a round trip more."""

MOST, MOST_TOKENS = 256, 1 << 18
"""Sessions that are remembered, and tokens of all of them: a session takes up to 1 KB for each token that was decoded."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `num_common` tokens of a prompt are those of an ended session."""

    session: Session
    num_common: int


@dataclass(slots=True)
class _Ended:
    owner: str
    ids: array[int]
    session: Session
    until_s: float


class Prefixes:
    """Ended ones, the most recently used last, and open ones beside them. Owners do not see each other's: the time of an answer would tell
    what others have asked."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._ended: list[_Ended] = []
        self.open = OpenPrompts(now_s)

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, owner: str, ids: Sequence[int], session: Session) -> None:
        """A session whose first tokens are `ids` was kept. It takes the place of those that it continues."""
        own = array("i", ids)
        self._ended = [old for old in self._ended if not (old.owner == owner and len(old.ids) <= num_common(old.ids, own))]
        self._ended.append(_Ended(owner, own, session, self._now_s() + KEEP_S))
        del self._ended[:-MOST]
        while len(self._ended) > 1 and sum(len(ended.ids) for ended in self._ended) > MOST_TOKENS:
            del self._ended[0]

    def longest(self, owner: str, ids: Sequence[int]) -> Prefix | None:
        """The ended session with the most tokens in common with a prompt, whose last token is always computed; the newest of several."""
        now_s, prompt = self._now_s(), array("i", ids)
        self._ended = [ended for ended in self._ended if ended.until_s > now_s]
        counts = [(num_common(ended.ids, prompt), at) for at, ended in enumerate(self._ended) if ended.owner == owner]
        count, at = max(counts, default=(0, 0))
        if (count := min(count, len(ids) - 1)) < MIN_TOKENS:
            return None
        found = self._ended.pop(at)
        found.until_s = now_s + KEEP_S
        self._ended.append(found)
        return Prefix(found.session, count)
