"""Ended sessions of one node that forks may begin with.

Each belongs to its client: no other client can begin with it, or see by the time of an answer that it is here. The device frees their
keys and values before open sessions come short (`node/device/kept.py`); then the rest of them goes, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.inference.hop.hop import Key
    from swarm.inference.hop.sequences import Sequences


@dataclass(slots=True)
class _Kept:
    sequences: Sequences
    until_s: float
    keep_s: float


class KeptSessions:
    """By (client, session id, blocks), the least recently used first. Nothing here waits."""

    def __init__(self, now_s: Callable[[], float], *, most: int, most_per_client: int) -> None:
        """now_s: of the node's `Clock`. most: sessions that are kept at once, in all and of one client."""
        self._now_s, self._most, self._most_per_client = now_s, most, most_per_client
        self._kept: dict[Key, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, key: Key, sequences: Sequences, keep_s: float) -> list[Sequences]:
        """Keep an ended session for `keep_s` seconds after its last use. Returns those that go instead: the caller frees them."""
        before = self._kept.pop(key, None)
        self._kept[key] = _Kept(sequences, self._now_s() + keep_s, keep_s)
        own = [other for other in self._kept if other[0] == key[0]]
        gone = own[: max(0, len(own) - self._most_per_client)]
        gone += [other for other in self._kept if other not in gone][: max(0, len(self._kept) - len(gone) - self._most)]
        return [*([before.sequences] if before else []), *(self._kept.pop(other).sequences for other in gone)]

    def use(self, key: Key) -> Sequences | None:
        """A client's ended session, if it is kept; it is the last to go now."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return None
        kept.until_s = self._now_s() + kept.keep_s
        self._kept[key] = kept
        return kept.sequences

    def over(self, most_bytes: int) -> list[Sequences]:
        """Take out those whose time is over, or whose keys and values were freed; then others until the rest retains `most_bytes`."""
        now_s = self._now_s()
        gone = [key for key, kept in self._kept.items() if kept.until_s <= now_s or not kept.sequences.holds_tokens]
        found = [self._kept.pop(key).sequences for key in gone]
        num_bytes = sum(kept.sequences.num_bytes for kept in self._kept.values())
        while self._kept and num_bytes > most_bytes:
            found.append(self._kept.pop(next(iter(self._kept))).sequences)
            num_bytes -= found[-1].num_bytes
        return found

    def all_out(self) -> list[Sequences]:
        """Take out all."""
        found = [kept.sequences for kept in self._kept.values()]
        self._kept.clear()
        return found
