"""A client's opinion of peers that it has not asked yet.

May they be used, are they known, does the user trust them?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from protocols.ids import PeerId
from swarm.access import Gate

Judge = Callable[[PeerId], bool]


def _everybody(peer: PeerId) -> bool:
    return True


def _nobody(peer: PeerId) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Regard:
    """Questions about one peer; they are asked anew each time, since lists change."""

    may_be_used: Judge = _everybody
    """May a route go over it?"""

    has_met: Judge = _nobody
    """Has it answered this user before? Such peers are asked first."""

    is_trusted: Judge = _nobody
    """Does the user vouch for it? It counts as proven, as if it had computed for us."""


STRANGERS = Regard()
"""All peers may be used, none is known."""


class _Peer(Protocol):
    """What is needed of `swarm.peer.peer.Peer` and `swarm.peer.thin_peer.ThinPeer`."""

    gate: Gate

    def has_met(self, peer: PeerId) -> bool: ...


def regard_of(peer: _Peer) -> Regard:
    """By this peer's lists as they are at each moment."""
    gate = peer.gate
    return Regard(
        may_be_used=lambda one: gate.access.may_be_seen(one) and gate.access.may_be_dialled(one),
        has_met=peer.has_met,
        is_trusted=lambda one: gate.access.is_trusted(one),
    )
