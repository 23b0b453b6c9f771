"""The messages of a session between client and hops.

They open a route, run steps, survive failures and end the session.

    towards the last hop      Open, Step, History, Reroute, Close          on a `session` stream, client -> hop -> hop
    towards the client        Expect, HopLost                              on the same streams, back
    last hop -> client        Reply, HopLost                               on an `attach` stream, which begins with Attach

Step and History are in `steps.py`, Reply in `replies.py`; all that belongs to the conversation can be had from here.
An **Expect** says which step a hop wants next: in answer to Open and Reroute, or whenever it meets a gap; 0 = "I hold nothing".
Design: docs/architecture.md, "Resuming".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols import fields, frame
from protocols.defaults import MAX_HOPS, MAX_KEEP_S
from protocols.errors import MAX_MESSAGE, BadRequestError, shown
from protocols.ids import SessionId, parse_session_id
from protocols.operations import MAX_LENGTH as MAX_LENGTH
from protocols.operations import Crop as Crop
from protocols.operations import Op as Op
from protocols.operations import Repeat as Repeat
from protocols.operations import Rows as Rows
from protocols.replies import Reply as Reply
from protocols.route import MAX_EPOCH as MAX_EPOCH  # seen from outside, a grant and its route are part of this conversation
from protocols.route import Grant as Grant
from protocols.route import Hop as Hop
from protocols.route import Route as Route
from protocols.route import parse_route as parse_route
from protocols.step_spec import KINDS as KINDS
from protocols.step_spec import MAX_WANT as MAX_WANT
from protocols.step_spec import PASS_ON as PASS_ON
from protocols.step_spec import RESULTS as RESULTS
from protocols.step_spec import WANT_ALL as WANT_ALL
from protocols.step_spec import WANT_NONE as WANT_NONE
from protocols.step_spec import StepSpec as StepSpec
from protocols.steps import MAX_STEP as MAX_STEP
from protocols.steps import TRACE_BYTES as TRACE_BYTES
from protocols.steps import History as History
from protocols.steps import Step as Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """A new session begins with the sequences that another one of the same client had before `step`, or with a part of them. A hop that
    holds them copies them; another hop asks for the history."""

    session: SessionId
    step: int
    """The first one of the new session, too."""
    tokens: int = 0
    """Above 0: it begins with so many first tokens of the other's only sequence. They were there before `step` and have not changed
    since, so a hop has them also while the other one goes on, or if it has gone on. 0: with all sequences, exactly as before `step`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """First on every session stream: the grant, and the receiver's place in its route."""

    grant: Grant
    index: int
    dtype: str
    """Compute dtype that the whole route uses, e.g. `float32`; a hop of another precision refuses."""
    fork: Fork | None = None

    def encode(self) -> bytes:
        header: dict[str, object] = {"t": "open", "grant": self.grant.pack(), "index": self.index, "dtype": self.dtype}
        if self.fork is not None:
            header["fork"] = [self.fork.session, self.fork.step, *([self.fork.tokens] if self.fork.tokens else [])]
        return frame.encode(header)

    @classmethod
    def parse(cls, received: frame.Frame) -> Open:
        header = received.header
        grant = Grant.parse(header.get("grant"))
        index = fields.integer(header, "index", 0, len(grant.route) - 1)
        return cls(grant=grant, index=index, dtype=fields.text(header, "dtype", 16), fork=_fork(header))


def _fork(header: fields.Header) -> Fork | None:
    value = header.get("fork")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise BadRequestError(f"a fork is [session, step] or [session, step, tokens], got {shown(value)}")
    step = fields.integer({"step": value[1]}, "step", 1, MAX_STEP)
    tokens = fields.integer({"tokens": value[2]}, "tokens", 0, MAX_LENGTH) if len(value) == 3 else 0
    return Fork(session=parse_session_id(value[0]), step=step, tokens=tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reroute:
    """A new epoch for a hop that stays: it keeps its sequences, and dials its successor again if that has changed."""

    grant: Grant
    index: int

    def encode(self) -> bytes:
        return frame.encode({"t": "reroute", "grant": self.grant.pack(), "index": self.index})

    @classmethod
    def parse(cls, received: frame.Frame) -> Reroute:
        grant = Grant.parse(received.header.get("grant"))
        return cls(grant=grant, index=fields.integer(received.header, "index", 0, len(grant.route) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The session ends at this hop; memory is returned at once. With `below`, the hop passes it on: the whole session is over."""

    session: SessionId
    below: bool = True
    """False: only this hop has been left out of a new route, the hops below it may go on."""
    keep_s: int = 0
    """Seconds for which sequences may be kept for a `Fork`, in memory that is free otherwise and may be freed earlier. 0: none."""

    def encode(self) -> bytes:
        header: dict[str, object] = {"t": "close", "session": self.session, "below": self.below}
        if self.keep_s:
            header["keep"] = self.keep_s
        return frame.encode(header)

    @classmethod
    def parse(cls, received: frame.Frame) -> Close:
        header = received.header
        return cls(
            session=parse_session_id(header.get("session")),
            below=fields.flag(header, "below"),
            keep_s=fields.integer(header, "keep", 0, MAX_KEEP_S) if "keep" in header else 0,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """A hop's word to the hop above: `step` is what I want next; 0 means that I hold nothing and need the history first."""

    session: SessionId
    epoch: int
    step: int

    def encode(self) -> bytes:
        return frame.encode({"t": "expect", "session": self.session, "epoch": self.epoch, "step": self.step})

    @classmethod
    def parse(cls, received: frame.Frame) -> Expect:
        header = received.header
        return cls(
            session=parse_session_id(header.get("session")),
            epoch=fields.integer(header, "epoch", 0, MAX_EPOCH),
            step=fields.integer(header, "step", 0, MAX_STEP),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HopLost:
    """Towards the client: hop `index` of this epoch's route is gone or refuses; `code` and `message` say why."""

    session: SessionId
    epoch: int
    index: int
    code: str
    message: str

    def encode(self) -> bytes:
        return frame.encode({"t": "lost", "session": self.session, "epoch": self.epoch, "index": self.index,
                             "code": self.code, "message": self.message[:MAX_MESSAGE]})  # fmt: skip

    @classmethod
    def parse(cls, received: frame.Frame) -> HopLost:
        header = received.header
        return cls(
            session=parse_session_id(header.get("session")),
            epoch=fields.integer(header, "epoch", 0, MAX_EPOCH),
            index=fields.integer(header, "index", 0, MAX_HOPS - 1),
            code=fields.text(header, "code", 64),
            message=fields.message(header, "message"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """First on a client's stream to the last hop: send me the replies of this session, from step `step` on."""

    grant: Grant
    step: int

    def encode(self) -> bytes:
        return frame.encode({"t": "attach", "grant": self.grant.pack(), "step": self.step})

    @classmethod
    def parse(cls, received: frame.Frame) -> Attach:
        return cls(grant=Grant.parse(received.header.get("grant")), step=fields.integer(received.header, "step", 0, MAX_STEP))


Message = Open | Step | History | Reroute | Close | Expect | HopLost | Attach | Reply
_KINDS: dict[str, Callable[[frame.Frame], Message]] = {
    "open": Open.parse, "step": Step.parse, "history": History.parse, "reroute": Reroute.parse, "close": Close.parse,
    "expect": Expect.parse, "lost": HopLost.parse, "attach": Attach.parse, "reply": Reply.parse,
}  # fmt: skip


def parse(data: bytes) -> Message:
    """The message in a frame; FrameError, TensorFormatError or BadRequestError says what is wrong with it."""
    return frame.parse_one_of(data, _KINDS)
