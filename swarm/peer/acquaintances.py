"""Peers that have answered us, at an address.

A signed record alone does not show that a peer exists there.

If only some peers fit or can be asked, these come first. Being on the list costs a server that answers at an address, and
the list is bounded by network too, so that one network cannot fill it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from protocols.ids import PeerId
from swarm.prefixes import is_local, prefix

MAX_MET = 1_024
MAX_PER_PREFIX = 32
"""Peers of one /24 or /48; on loopback and in private networks only MAX_MET holds."""


class Acquaintances:
    """The ones met last."""

    def __init__(self) -> None:
        self._prefixes: dict[PeerId, str] = {}
        self._counts: Counter[str] = Counter()

    def __contains__(self, peer: object) -> bool:
        return peer in self._prefixes

    def __iter__(self) -> Iterator[PeerId]:
        return iter(tuple(self._prefixes))

    def note(self, peer: PeerId, address: str) -> None:
        """`peer` has just answered at `address` (`host:port`)."""
        self.forget(peer)
        group = prefix(address.rpartition(":")[0].strip("[]"))
        while self._counts[group] >= MAX_PER_PREFIX and not is_local(group):
            self.forget(next(other for other, theirs in self._prefixes.items() if theirs == group))
        while len(self._prefixes) >= MAX_MET:
            self.forget(next(iter(self._prefixes)))
        self._prefixes[peer] = group
        self._counts[group] += 1

    def forget(self, peer: PeerId) -> None:
        """It answers no more, say."""
        group = self._prefixes.pop(peer, None)
        if group is not None:
            self._counts[group] -= 1
            if not self._counts[group]:
                del self._counts[group]
