"""Upload slots: which streams hold one, which wait, which lose theirs.

Pure: clocks are arguments.

A place is kept by taking bytes. While others wait, it goes from who asks nothing, or takes next to nothing, to the one that waits whose
network and peer hold fewest; and who has held one for long gives it to a network, or a peer, that holds fewer. PeerIDs are made in no
time, addresses are not: so networks count first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols.errors import OverloadedError
from protocols.ids import PeerId

MAX_UPLOADS_PER_PEER = 2
MAX_WAITING = 32
"""Streams that wait for a place at once; further ones are refused at once."""

IDLE_S = 1.0
"""A stream on which nothing is asked for so long gives way to one that waits."""

JUDGED_S = 5.0
"""So old is a stream before its rate is judged."""

PAUSE_S = 20.0
"""A stream that takes nothing of an answer for so long gives way, whatever it took before; SHORTEST_PAUSE_S if it is known to be fast."""

SHORTEST_PAUSE_S = 5.0
KNOWN_BYTES = 4 << 20
"""From so many bytes on it is known how long a stream takes for each: four times as long is a pause."""

SLOW_BYTES_S = 32 << 10
"""A stream that takes less gives way to one that waits: half of what each is promised where the rate is capped."""

SHUNNED_S = 60.0
"""A peer that lost a place which it did not use comes after the others of its network for so long."""

MAX_SHUNNED = 256
"""Such peers that are remembered."""

TURN_S = 30.0
"""A stream that is older gives way to a network, or a peer, that holds fewer places."""


@dataclass(slots=True, eq=False)
class Slot:
    """One stream: waiting, or with a place."""

    peer: PeerId
    network: str
    on_end: Callable[[], None]
    """Called if it has to give up its place."""
    since_s: float
    """When it came, then when it got its place, then from when on it is judged."""
    opened_s: float = 0.0
    idle_since_s: float | None = None
    """When its last question was answered; None = one is being answered."""
    num_bytes: int = 0
    """Sent since `since_s`."""
    took_s: float = 0.0
    """When it last took something, or was asked."""

    def asked(self, now_s: float) -> None:
        """Its next question came. If it could have lost its place meanwhile, and did not, it is judged from here on."""
        if self.idle_since_s is not None and now_s - self.idle_since_s > IDLE_S:
            self.since_s, self.num_bytes = now_s, 0
        self.idle_since_s, self.took_s = None, now_s

    def answered(self, now_s: float) -> None:
        self.idle_since_s = now_s

    def offered(self, num_bytes: int) -> None:
        """A part of an answer is being sent. It counts from now on; a slow line may need long for it (`_pause_s`)."""
        self.num_bytes += num_bytes

    def took(self, now_s: float) -> None:
        """It has taken the part."""
        self.took_s = now_s
        if now_s - self.since_s > 4 * JUDGED_S:  # what was long ago counts half
            self.since_s, self.num_bytes = now_s - 2 * JUDGED_S, self.num_bytes // 2

    def is_useless(self, now_s: float) -> bool:
        if self.idle_since_s is not None and now_s - self.idle_since_s > IDLE_S:
            return True
        if self.idle_since_s is None and now_s - self.took_s > self._pause_s():
            return True
        return now_s - self.since_s > JUDGED_S and self.bytes_s(now_s) < SLOW_BYTES_S

    def _pause_s(self) -> float:
        if self.num_bytes < KNOWN_BYTES:
            return PAUSE_S
        mebibyte_s = (self.took_s - self.since_s) / (self.num_bytes >> 20)
        return min(max(4 * mebibyte_s, SHORTEST_PAUSE_S), PAUSE_S)

    def bytes_s(self, now_s: float) -> float:
        return self.num_bytes / max(now_s - self.since_s, 1e-6)


class Slots:
    """At most `most` streams have a place."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: list[Slot] = []
        self._waiting: list[Slot] = []
        self._shunned: dict[PeerId, float] = {}
        """Until when."""

    @property
    def num_held(self) -> int:
        return len(self._held)

    def wait(self, slot: Slot) -> None:
        """It wants a place. OverloadedError if its peer has, or waits for, as many as one may have, or too many wait."""
        if sum(other.peer == slot.peer for other in self._held + self._waiting) >= MAX_UPLOADS_PER_PEER:
            raise OverloadedError(
                f"{MAX_UPLOADS_PER_PEER} uploads to you are running here, the limit of one peer: ask another peer"
            )
        if len(self._waiting) >= MAX_WAITING:
            raise OverloadedError(f"{MAX_WAITING} others wait for an upload here, the limit: ask another peer, or again later")
        self._waiting.append(slot)

    def leave(self, slot: Slot) -> None:
        """It is over, or waits no longer."""
        for slots in (self._held, self._waiting):
            if slot in slots:
                slots.remove(slot)

    def enter(self, slot: Slot, now_s: float) -> bool:
        """True if it has its place from now on: one is free, or was taken from another, and no waiting stream comes first."""
        assert slot in self._waiting
        if min(self._waiting, key=lambda one: self._claim(one, now_s)) is not slot:
            return False
        if len(self._held) >= self.most:
            loser = self._loser(slot, now_s)
            if loser is None:
                return False
            self._held.remove(loser)
            self._shun(loser, now_s)
            loser.on_end()
        self._waiting.remove(slot)
        self._held.append(slot)
        slot.since_s = slot.opened_s = slot.took_s = now_s
        return True

    def _claim(self, slot: Slot, now_s: float) -> tuple[int, bool, int, float]:
        """The lowest is served first."""
        of_network, of_peer = self._share(slot)
        return of_network, self._shunned.get(slot.peer, now_s) > now_s, of_peer, slot.since_s

    def _shun(self, loser: Slot, now_s: float) -> None:
        if loser.is_useless(now_s):
            self._shunned.pop(loser.peer, None)
            self._shunned[loser.peer] = now_s + SHUNNED_S
            while len(self._shunned) > MAX_SHUNNED:
                del self._shunned[next(iter(self._shunned))]

    def _share(self, slot: Slot) -> tuple[int, int]:
        """Places of its network, and of its peer, besides its own."""
        others = [other for other in self._held if other is not slot]
        return sum(other.network == slot.network for other in others), sum(other.peer == slot.peer for other in others)

    def _loser(self, slot: Slot, now_s: float) -> Slot | None:
        """The slot that ends so that `slot` can begin: the least useful of the useless ones.

        If none is useless: of those that are older than TURN_S, the oldest of the network, or the peer, that holds most.
        """
        useless = [held for held in self._held if held.is_useless(now_s)]
        if useless:
            return min(useless, key=lambda held: (held.idle_since_s is None, held.bytes_s(now_s)))
        mine = self._share(slot)
        served = [held for held in self._held if now_s - held.opened_s > TURN_S and self._holds_more(held, slot, mine)]
        return min(served, key=lambda held: (*(-share for share in self._share(held)), held.opened_s), default=None)

    def _holds_more(self, held: Slot, slot: Slot, mine: tuple[int, int]) -> bool:
        """Would giving way leave `held`'s network, or within one network its peer, with no less than `slot`'s?"""
        theirs = self._share(held)
        return theirs[1] >= mine[1] if held.network == slot.network else theirs[0] >= mine[0]
