"""Whom this peer talks to: lists, bans and the swarm's key.

The lists decide about PeerIDs that were proved by TLS or by a signature. They say nothing about a message: what a listed peer sends
is parsed and bounded like any other peer's message.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from protocols.errors import NotAllowedError
from protocols.ids import PeerId, short_peer
from protocols.swarm_key import SwarmKey
from swarm.bans import Bans


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Lists of PeerIDs as they are at one moment. A denied peer stays denied, whatever the other two say."""

    allow: frozenset[PeerId] | None = None
    """Only these; None = all."""

    deny: frozenset[PeerId] = frozenset()
    """Never these."""

    trust: frozenset[PeerId] = frozenset()
    """Tried first, and taken as proven when others have to prove themselves first."""

    operators: frozenset[PeerId] = frozenset()
    """Whose orders we obey (`protocols/orders.py`)."""

    banned: frozenset[PeerId] = frozenset()
    """Denied by an operator, for a while (`bans.py`)."""

    def may_call(self, peer: PeerId) -> bool:
        """May it call our gRPC server, and speak to our part of the DHT?"""
        return self._is_listed(peer)

    def may_be_dialled(self, peer: PeerId) -> bool:
        """Do we call it?"""
        return self._is_listed(peer)

    def may_be_seen(self, peer: PeerId) -> bool:
        """Do we believe what it announces, route over it, and count it in placement?"""
        return self._is_listed(peer)

    def may_open_session(self, client: PeerId) -> bool:
        """Do we compute for this client, whichever hop brings its grant?"""
        return self._is_listed(client)

    @property
    def is_limited(self) -> bool:
        """Is any peer left out?"""
        return self.allow is not None or bool(self.deny or self.banned)

    def is_trusted(self, peer: PeerId) -> bool:
        """Is it taken as proven, and tried before others?"""
        return peer in self.trust and self._is_listed(peer)

    def may_order(self, peer: PeerId) -> bool:
        """Do we obey it? It gives no right of its own: an operator whom another list refuses cannot call."""
        return peer in self.operators and self._is_listed(peer)

    def _is_listed(self, peer: PeerId) -> bool:
        return peer not in self.deny and peer not in self.banned and (self.allow is None or peer in self.allow)


EVERYBODY = Access()


class Gate:
    """The swarm's key, and the lists as they are now; one for each peer, handed to its parts."""

    def __init__(self, key: SwarmKey | None = None, access: Access = EVERYBODY, bans: Bans | None = None) -> None:
        """bans: of an operator, beside the lists; None = there never are any."""
        self.key = key
        """The secret of our private swarm; None = it is public."""
        self.bans = bans
        self.access = self._with_bans(access)
        self._running: dict[int, tuple[PeerId, Callable[[], object]]] = {}
        self._numbers = itertools.count()

    def check_caller(self, peer: PeerId) -> None:
        """NotAllowedError if it may not call us."""
        if not self.access.may_call(peer):
            raise NotAllowedError(f"this peer does not serve {short_peer(peer)}: {self._which(peer)}; ask another peer")

    def check_dialled(self, peer: PeerId) -> None:
        """NotAllowedError if we do not call it."""
        if not self.access.may_be_dialled(peer):
            raise NotAllowedError(f"peer {short_peer(peer)} is not dialled: {self._which(peer)} here")

    def check_client(self, client: PeerId) -> None:
        """NotAllowedError if we do not compute for the client that signed a grant."""
        if not self.access.may_open_session(client):
            raise NotAllowedError(
                f"this peer does not compute for client {short_peer(client)}: {self._which(client)}; ask another peer"
            )

    def _which(self, peer: PeerId) -> str:
        if peer in self.access.deny:
            return "it is denied (--deny)"
        return "an operator has banned it" if peer in self.access.banned else "it is not among the allowed ones (--allow)"

    @contextlib.contextmanager
    def running(self, peer: PeerId, end: Callable[[], object]) -> Iterator[None]:
        """Something goes on with `peer` while this lasts: if a list comes to refuse that, `end` is called."""
        number = next(self._numbers)
        self._running[number] = peer, end
        try:
            yield
        finally:
            del self._running[number]

    def renew(self, access: Access) -> None:
        """From now on these lists hold, and the bans as they are now, also for what is running."""
        self.access = access = self._with_bans(access)
        for peer, end in list(self._running.values()):
            if not (access.may_call(peer) and access.may_open_session(peer)):
                end()

    def renew_bans(self) -> bool:
        """From now on the bans hold as they are now. Returns whether that changed anything."""
        if self.bans is None or self.bans.now() == self.access.banned:
            return False
        self.renew(self.access)
        return True

    def _with_bans(self, access: Access) -> Access:
        return access if self.bans is None else replace(access, banned=self.bans.now())
