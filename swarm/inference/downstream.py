"""The boundary below: what the next hop got and lacks.

What was sent to it, the message stream to it, and what it still lacks.

Hops and the client use the same. The hop below says with Expect what it wants next; `pump` then sends exactly that:
the history if it holds nothing that we could continue, and every later frame. A new hop, a hop that was only cut off,
and a hop that had been ahead of us are all the same case.
"""

from __future__ import annotations

from dataclasses import replace

from protocols.ids import SessionId
from protocols.inference import Close, Expect, Grant, Reroute, Step
from swarm import trace
from swarm.inference.retained import Retained
from swarm.streams.message_stream import MessageStream

MAX_HISTORIES = 4
"""Times in an epoch that a hop below may ask for everything. An honest one asks once, and again if it forgets in the middle."""


class Downstream:
    """Retained frames and the current wire to the hop below. Nothing here waits."""

    def __init__(self, session: SessionId) -> None:
        self.session = session
        self.epoch = 0
        self.retained = Retained()
        self.wire: MessageStream | None = None
        self._wanted: int | None = None
        """What the hop below wants next; None until it has said so on this wire, or it is known."""
        self._is_assumed = False
        self._histories = 0
        """Sent in this epoch."""

    def connect(self, wire: MessageStream, epoch: int) -> None:
        """Use a new wire; nothing is sent before the hop behind it has said what it wants.

        But on a session's first route it can only want the beginning: that is sent at once, and its word is not waited for.
        """
        if epoch != self.epoch:
            self._histories = 0
        self._is_assumed = epoch == 0 and self.retained.base == 0
        self.wire, self.epoch, self._wanted = wire, epoch, 0 if self._is_assumed else None
        self.pump()

    def reroute(self, grant: Grant, index: int) -> None:
        """Tell the hop below, which stays, of a new epoch; it answers with Expect."""
        self.epoch, self._wanted, self._histories = grant.epoch, None, 0
        if self.wire is not None:
            self.wire.post(Reroute(grant=grant, index=index))

    def expect(self, expected: Expect) -> None:
        """The hop below said what it wants."""
        if expected.epoch != self.epoch:
            return
        is_known, self._is_assumed = self._is_assumed and expected.step == 0, False
        if not is_known:
            self._wanted = expected.step
            self.pump()

    def send(self, step: Step) -> None:
        """Retain a step and pass it on as soon as the hop below wants it."""
        self.retained.add(step)
        self.pump()

    def resend(self, number: int) -> None:
        """Pass a retained step on once more: the hop above repeated it, so a reply may have been lost."""
        if self._wanted is not None and number < self._wanted:
            self._wanted = max(number, self.retained.base)
        self.pump()

    def pump(self) -> None:
        """Send whatever the hop below lacks, oldest first."""
        if self.wire is None or self._wanted is None or not self.wire.is_open:
            return
        if self._wanted < self.retained.base:
            if not self.retained.has_history or self.is_insatiable:
                return
            self._histories += 1
            self.wire.post(self.retained.histories(self.session, self.epoch))
            self._wanted = self.retained.base
        for step in self.retained.steps_from(self._wanted):
            trace.mark("sent", self.session, step.step, step.payload.num_bytes)
            is_ours = step.epoch == self.epoch and step.session == self.session
            self.wire.post(step if is_ours else replace(step, epoch=self.epoch, session=self.session))
            self._wanted = step.step + 1

    @property
    def num_sent(self) -> int:
        """Steps that the hop below has been sent, or says that it has."""
        return 0 if self.wire is None or self._wanted is None else min(self._wanted, self.retained.next_step)

    @property
    def is_starved(self) -> bool:
        """The hop below needs the history, and we have dropped it: only the hop above can help."""
        return self._wanted is not None and self._wanted < self.retained.base and not self.retained.has_history

    @property
    def is_insatiable(self) -> bool:
        """The hop below wants the history again, after it has had it MAX_HISTORIES times in this epoch: it is to be replaced."""
        return self._wanted is not None and self._wanted < self.retained.base and self._histories >= MAX_HISTORIES

    def drop(self) -> None:
        """The wire is lost: keep what was sent, and wait for the next `connect`."""
        self.wire, self._wanted = None, None

    def end(self, close: Close | None) -> None:
        """Let go of the wire, with a last word for the hop below if there is one; None: it will find out by itself."""
        if self.wire is not None:
            if close is not None:
                self.wire.post(close)
            self.wire.end()
        self.drop()
