"""The boundary to the client, at the last hop: the latest replies, kept until the client cannot want them again, and its wire."""

from __future__ import annotations

from collections import deque

from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.inference import Attach, Reply
from swarm.inference import trace
from swarm.inference.wire import Wire


class Answers:
    """As many replies as the client may have in flight (`Retained` keeps as many frames). Nothing here waits."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        """The client's attach stream; None while it has none."""
        self._replies: deque[Reply] = deque(maxlen=WINDOW_STEPS)

    @property
    def num_bytes(self) -> int:
        return sum(reply.num_bytes for reply in self._replies)

    def attach(self, wire: Wire | None, attach: Attach) -> None:
        """The client listens on `wire` from now on, and has had everything before step `attach.step`."""
        if self.wire is not None and self.wire is not wire:
            self.wire.end()
        self.wire = wire
        for reply in self._replies:
            if reply.step >= attach.step:
                self._send(reply)

    def add(self, reply: Reply) -> None:
        """Keep a reply, and send it if the client listens."""
        self._replies.append(reply)
        while len(self._replies) > 1 and self.num_bytes > WINDOW_BYTES:
            self._replies.popleft()
        self._send(reply)

    def repeat(self, step: int) -> None:
        """The step was sent again: so is its reply, if it is still here."""
        for reply in self._replies:
            if reply.step == step:
                self._send(reply)

    def clear(self) -> None:
        self._replies.clear()

    def _send(self, reply: Reply) -> None:
        if self.wire is not None:
            self.wire.post(reply)
            trace.mark("replied", reply.session, reply.step, reply.num_bytes)
