"""Progress: how far one hop of a session is.

The session's client asks if answers are late.

A client that gets no reply must find the hop that keeps the steps. So it asks each hop itself, past the other hops, and compares what
they say (`swarm/inference/client/suspicion.py`). Numbers of steps count from the session's first: 3 = the steps 0, 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import fields, frame
from protocols.defaults import MAX_HOPS
from protocols.ids import SessionId, parse_session_id
from protocols.inference import MAX_STEP
from protocols.route import MAX_EPOCH
from protocols.units import Blocks, parse_blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressRequest:
    """How far are you with this session of mine? A peer may run several parts of one session, so the blocks are named."""

    session: SessionId
    unit: Blocks

    def encode(self) -> bytes:
        return frame.encode({"t": "progress?", "session": self.session, "unit": str(self.unit)})

    @classmethod
    def parse(cls, data: bytes) -> ProgressRequest:
        header = frame.decode_kind(data, "progress?").header
        return cls(session=parse_session_id(header.get("session")), unit=parse_blocks(header.get("unit")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One hop's word on one session of the asker."""

    epoch: int = -1
    """Of the newest route that it knows; -1 = it has no such session."""
    received: int = 0
    """Steps that came from above, the one that is computed now included."""
    computed: int = 0
    sent: int = 0
    """Steps that were handed to the hop below, or, as replies, to the client."""
    is_busy: bool = False
    """It computes, or waits for the device."""
    has_given_up: bool = False
    """It has reported itself lost in this epoch."""
    lost: int = -1
    """The first hop of the route whose loss it has reported or passed on in this epoch; -1 = none."""

    def encode(self) -> bytes:
        return frame.encode({"t": "progress", "epoch": self.epoch, "received": self.received, "computed": self.computed,
                             "sent": self.sent, "busy": self.is_busy, "over": self.has_given_up, "lost": self.lost})  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Progress:
        header = frame.decode_kind(data, "progress").header
        return cls(
            epoch=fields.integer(header, "epoch", -1, MAX_EPOCH),
            received=fields.integer(header, "received", 0, MAX_STEP),
            computed=fields.integer(header, "computed", 0, MAX_STEP),
            sent=fields.integer(header, "sent", 0, MAX_STEP),
            is_busy=fields.flag(header, "busy"),
            has_given_up=fields.flag(header, "over"),
            lost=fields.integer(header, "lost", -1, MAX_HOPS - 1),
        )
