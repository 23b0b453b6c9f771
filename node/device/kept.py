"""Sequences of ended sessions that a fork may begin with.

They lie in memory that is free otherwise: as soon as an open session needs it, those that were used least recently are freed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

from node.device.work import HeldSequences

NO_CLIENT: Final[Hashable] = "no client"
"""In the client's place in `Holdings`: no client is charged for what is kept."""


class KeptSequences:
    """Of all hosts of a device, the least recently used first. Only the device's thread calls this."""

    def __init__(self) -> None:
        self._free: dict[HeldSequences, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._free)

    def add(self, session: HeldSequences, free: Callable[[], None]) -> None:
        """Keep a session's sequences. free: closes them, and notes what the session holds then."""
        session.is_kept = True
        self._free[session] = free

    def use(self, session: HeldSequences) -> None:
        """A fork begins with them: they are the last to be freed now. Does nothing for a session that is open."""
        if session in self._free:
            self._free[session] = self._free.pop(session)

    def drop(self, session: HeldSequences) -> None:
        """They have been closed. A second call changes nothing."""
        self._free.pop(session, None)

    def free_one(self) -> bool:
        """Free those that were used least recently; False: none is kept."""
        if not self._free:
            return False
        session = next(iter(self._free))
        self._free.pop(session)()
        return True
