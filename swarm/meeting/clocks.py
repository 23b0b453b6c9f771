"""How far this machine's clock is from other peers' clocks.

Only peers that it has asked count.

Records and credentials carry Unix times, so a wrong clock makes a node invisible, or others invisible to it. Each peer says its time in
its hello. A majority of those asked decides: one peer with a wrong clock, or one that lies, has no effect once others have answered.
What peers say here changes no time; it is only told to the user.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

from protocols.errors import ModelNotFoundError, NoRouteError
from protocols.ids import PeerId, short_peer

TOLERATED_S = 30.0
"""Seconds: up to this difference nothing breaks (a record lives 60 s and is renewed every 20 s)."""

MAX_PEERS = 32
"""Peers whose difference is remembered, the newest."""

HOW_TO_SET = "set it, e.g. by `timedatectl set-ntp true`"


class Clocks:
    """What one peer knows about its clock from others."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """clock: this machine's Unix time, in seconds."""
        self.now_s = clock
        self._ahead_s: dict[PeerId, float] = {}
        """By how much our clock is ahead of theirs; negative = behind."""

    def note(self, peer: PeerId, asked_at_s: float, theirs_s: float) -> None:
        """`peer`, asked at `asked_at_s`, has just answered that its time is `theirs_s`; 0 = it did not say."""
        if not theirs_s:
            return
        self._ahead_s.pop(peer, None)
        self._ahead_s[peer] = (asked_at_s + self.now_s()) / 2 - theirs_s
        while len(self._ahead_s) > MAX_PEERS:
            del self._ahead_s[next(iter(self._ahead_s))]

    @property
    def fault(self) -> str:
        """What is wrong with this machine's clock, for the user; empty if nothing is."""
        return judged(self._ahead_s)

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Inside, an error that no peer serves something also names this machine's clock, if that is wrong: records look expired then."""
        try:
            yield
        except (ModelNotFoundError, NoRouteError) as error:
            if not self.fault or self.fault in str(error):
                raise
            raise type(error)(f"{self.fault}; until then what others announce looks expired here ({error})") from error


def judged(ahead_s: Mapping[PeerId, float]) -> str:
    """One line if most peers agree that our clock is ahead, or behind, by more than `TOLERATED_S`; else `""`."""
    for direction, sign in (("ahead of", 1), ("behind", -1)):
        off = {peer: sign * value for peer, value in ahead_s.items() if sign * value > TOLERATED_S}
        if 2 * len(off) > len(ahead_s):
            by_s, first = statistics.median(off.values()), next(iter(off))
            others = f" and those of {len(off) - 1} of {len(ahead_s) - 1} other peers" if len(ahead_s) > 1 else ""
            return f"this machine's clock is {by_s:.0f} s {direction} that of peer {short_peer(first)}{others}: {HOW_TO_SET}"
    return ""
