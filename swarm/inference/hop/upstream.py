"""The boundary above: the hop above and its requests.

The message stream to it, what it was asked for, and which losses it was told.

`swarm/inference/downstream.py` is its counterpart, and `answers.py` the boundary to the client.
"""

from __future__ import annotations

from protocols.inference import Expect, Grant, HopLost
from swarm.streams.message_stream import MessageStream


class Upstream:
    """The current wire to the hop above; None while the session is an orphan. Nothing here waits."""

    def __init__(self, now_s: float) -> None:
        self.wire: MessageStream | None = None
        self.orphaned_since_s: float | None = now_s
        """When the hop above left, by the node's clock; None while there is one."""
        self.was_opened = False
        """There has been a hop above. Where there has not, an Attach has come in vain, or after the session's Close."""
        self.received = 0
        """Steps that have come, one after the other, since the last Open, Reroute or history."""
        self.is_waiting = False
        """We have said what we want, and nothing that fits has come yet: say it once, not for every frame in flight."""
        self._told: set[int] = set()
        """Hops of this epoch of whose loss we have told: once is enough, however often we hear of it."""

    def connect(self, wire: MessageStream | None) -> None:
        """The hop above came, perhaps again, over `wire`; an older wire ends."""
        if self.wire is not None and self.wire is not wire:
            self.wire.end()
        self.wire, self.orphaned_since_s, self.was_opened = wire, None, True

    def receive(self, step: int, next_step: int) -> None:
        """A step came, and waits or is about to be computed; `next_step` is the one that the sequences are ready for."""
        next_one = max(self.received, next_step)
        self.received = next_one + (step == next_one)  # else the hop above has dropped one, or made one up

    def drop(self, now_s: float) -> None:
        """The wire is lost: the session is an orphan until the next `connect`."""
        self.wire, self.orphaned_since_s = None, now_s

    def begin_route(self) -> None:
        """A route came: what was told of the one before says nothing of its hops."""
        self._told.clear()

    def first_told(self, below: int) -> int:
        """The first hop behind `below` of whose loss we have told in this epoch; -1 = none."""
        return min((index for index in self._told if index > below), default=-1)

    def expect(self, grant: Grant, step: int) -> None:
        """Say that we want step number `step` next."""
        self.is_waiting = True
        if self.wire is not None:
            self.wire.post(Expect(session=grant.session, epoch=grant.epoch, step=step))

    def tell(self, lost: HopLost, client: MessageStream | None) -> None:
        """Pass bad news towards the client, over whichever way is open: the hop above, and the client's own stream."""
        if lost.index in self._told:
            return
        self._told.add(lost.index)
        for wire in (self.wire, client):
            if wire is not None and wire.is_open:
                wire.post(lost)
