"""Why p2pd could not connect to a peer."""

from __future__ import annotations

from protocols.errors import PeerUnreachableError
from swarm.dht.address import PeerAddress


class DialPausedError(PeerUnreachableError):
    """p2pd has not dialled at all: dials of before have failed."""


def failure(address: PeerAddress, error: BaseException) -> PeerUnreachableError:
    """What p2pd says, in a few words: those after the address that it dialled last. Before that it repeats the peer and its addresses."""
    text = " ".join(str(error).split()).rpartition("] ")[2].removeprefix("dial ")
    if text == "backoff":
        return DialPausedError(f"no peer answers at {address}: p2pd pauses after failed dials")
    return PeerUnreachableError(f"no peer answers at {address}: {text[:200] or 'no answer in time'}")
