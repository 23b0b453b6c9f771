"""The boundary to the client, at the last hop.

The latest replies, kept until the client cannot want them again, and its message stream.
"""

from __future__ import annotations

from collections import deque

from protocols.defaults import WINDOW_BYTES, WINDOW_STEPS
from protocols.inference import Attach, Reply
from swarm import trace
from swarm.streams.message_stream import MessageStream


class Answers:
    """As many replies as the client may have in flight (`Retained` keeps as many frames). Nothing here waits."""

    def __init__(self) -> None:
        self.wire: MessageStream | None = None
        """The client's attach stream; None while it has none."""
        self._replies: deque[Reply] = deque()
        self.num_bytes = 0

    def attach(self, wire: MessageStream | None, attach: Attach) -> None:
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
        self.num_bytes += reply.num_bytes
        while len(self._replies) > WINDOW_STEPS or (len(self._replies) > 1 and self.num_bytes > WINDOW_BYTES):
            self.num_bytes -= self._replies.popleft().num_bytes
        self._send(reply)

    def repeat(self, step: int) -> None:
        """The step was sent again: so is its reply, if it is still here."""
        for reply in self._replies:
            if reply.step == step:
                self._send(reply)

    def clear(self) -> None:
        self._replies.clear()
        self.num_bytes = 0

    def _send(self, reply: Reply) -> None:
        if self.wire is not None:
            trace.mark("replied", reply.session, reply.step, reply.num_bytes)
            self.wire.post(reply)
