"""The messages of a session between client and hops.

They open a route, run steps, survive failures and end the session.

    towards the last hop      Open, Step, History, Reroute, Close          on a `session` stream, client -> hop -> hop
    towards the client        Expect, HopLost                              on the same streams, back
    last hop -> client        Reply, HopLost                               on an `attach` stream, which begins with Attach

A **step** carries some consecutive tokens of a session's sequences through every hop; the client numbers steps from 0.
A **History** stands for the steps 0 … base-1: each sequence's retained inputs, as one prefill, for a hop that has lost them or never
had them.
An **Expect** says which step a hop wants next: in answer to Open and Reroute, or whenever it meets a gap; 0 = "I hold nothing".
Design: docs/architecture.md, "Resuming".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocols import fields, frame, tensors, timings
from protocols.defaults import MAX_HOPS, MAX_KEEP_S, MAX_ROWS, MAX_STEP_TOKENS
from protocols.errors import MAX_MESSAGE, BadRequestError, shown
from protocols.ids import SessionId, parse_session_id
from protocols.operations import MAX_LENGTH as MAX_LENGTH
from protocols.operations import Crop as Crop
from protocols.operations import Op as Op
from protocols.operations import Repeat as Repeat
from protocols.operations import Rows as Rows
from protocols.operations import pack_op, parse_ops
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
from protocols.words import counted

MAX_STEP = 1 << 40

TRACE_BYTES = 16 + 8 + 1
"""A W3C trace context: the trace's id, the id of the span above, flags. Source: https://www.w3.org/TR/trace-context/"""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Some tokens of every sequence, going once through the route. `payload` is what `spec.kind` says, on one flat token axis."""

    session: SessionId
    epoch: int
    step: int
    counts: tuple[int, ...]
    """New tokens per sequence, after `ops`; the payload is their concatenation along one flat token axis."""
    payload: tensors.WireTensor
    ops: tuple[Op, ...] = ()
    positions: tuple[int, ...] | None = None
    """A position per token, if the caller set some; None = each sequence counts its own tokens from 0."""
    spec: StepSpec = PASS_ON
    budget_ms: int = 60_000
    times: bytes | None = None
    """How long the hops above had it (`timings.py`); None = its client does not ask."""
    trace: bytes = b""
    """TRACE_BYTES, with which hops that keep traces make their spans part of the client's; empty = it keeps none."""

    def encode(self) -> bytes:
        spec = self.spec
        header = {"t": "step", "session": self.session, "epoch": self.epoch, "step": self.step, "counts": list(self.counts),
                  "ops": [pack_op(op) for op in self.ops], "payload": self.payload.header(), "want": spec.want,
                  "kind": spec.kind, "result": spec.result, "top": spec.top, "budget": self.budget_ms,
                  "priority": spec.priority}  # fmt: skip
        if self.positions is not None:
            header["positions"] = list(self.positions)
        if spec.temperature:
            header["temperature"] = spec.temperature
        if self.times is not None:
            header["times"] = self.times
        if self.trace:
            header["trace"] = self.trace
        if spec.changes:
            header["changes"] = len(spec.changes)
        second = spec.changes + spec.mask
        return frame.encode(header, [self.payload.data, second] if second else [self.payload.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> Step:
        header, buffers = received.header, received.buffers
        counts, payload = _counts_and_payload(received)
        return cls(
            session=parse_session_id(header.get("session")),
            epoch=fields.integer(header, "epoch", 0, MAX_EPOCH),
            step=fields.integer(header, "step", 0, MAX_STEP),
            counts=counts,
            payload=payload,
            ops=parse_ops(header),
            positions=_positions(header, sum(counts)),
            spec=StepSpec.parse(header, bytes(buffers[1]) if len(buffers) > 1 else b""),
            budget_ms=fields.integer(header, "budget", 0, 86_400_000),
            times=timings.parse(header),
            trace=b"" if header.get("trace") is None else fields.exactly(header, "trace", TRACE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Sequences as they were before step `base`, for a hop that holds nothing: `counts[i]` tokens of sequence i, one flat token axis.

    A history too large for a frame comes in `parts`; each sequence's pieces then follow each other from part to part.
    """

    session: SessionId
    epoch: int
    base: int
    counts: tuple[int, ...]
    payload: tensors.WireTensor
    positions: tuple[int, ...] | None = None
    part: int = 0
    parts: int = 1
    kind: str = "hidden"
    """As a step's; parts of one history may differ, since a caller's embeddings may be followed by token ids."""

    def encode(self) -> bytes:
        header = {"t": "history", "session": self.session, "epoch": self.epoch, "base": self.base, "counts": list(self.counts),
                  "payload": self.payload.header(), "part": self.part, "parts": self.parts, "kind": self.kind}  # fmt: skip
        if self.positions is not None:
            header["positions"] = list(self.positions)
        return frame.encode(header, [self.payload.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> History:
        header = received.header
        counts, payload = _counts_and_payload(received)
        parts = fields.integer(header, "parts", 1, 1 << 20)
        return cls(
            session=parse_session_id(header.get("session")),
            epoch=fields.integer(header, "epoch", 0, MAX_EPOCH),
            base=fields.integer(header, "base", 0, MAX_STEP),
            counts=counts,
            payload=payload,
            positions=_positions(header, sum(counts)),
            part=fields.integer(header, "part", 0, parts - 1),
            parts=parts,
            kind=fields.one_of(header, "kind", KINDS),
        )


def _fork(header: fields.Header) -> Fork | None:
    value = header.get("fork")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise BadRequestError(f"a fork is [session, step] or [session, step, tokens], got {shown(value)}")
    step = fields.integer({"step": value[1]}, "step", 1, MAX_STEP)
    tokens = fields.integer({"tokens": value[2]}, "tokens", 0, MAX_LENGTH) if len(value) == 3 else 0
    return Fork(session=parse_session_id(value[0]), step=step, tokens=tokens)


def _positions(header: fields.Header, num_tokens: int) -> tuple[int, ...] | None:
    if header.get("positions") is None:
        return None
    positions = fields.integers(header, "positions", MAX_STEP_TOKENS, 0, MAX_LENGTH)
    if len(positions) != num_tokens:
        raise BadRequestError(f"{counted(len(positions), 'position')} for {counted(num_tokens, 'token')}")
    return positions


def _counts_and_payload(received: frame.Frame) -> tuple[tuple[int, ...], tensors.WireTensor]:
    counts = fields.integers(received.header, "counts", MAX_ROWS, 0, MAX_STEP_TOKENS)
    payload = tensors.parse(received.header.get("payload"), received.buffers)
    if sum(counts) > MAX_STEP_TOKENS or not payload.shape or payload.shape[0] != sum(counts):
        raise BadRequestError(
            f"counts {list(counts)[:8]} (limit {MAX_STEP_TOKENS} tokens) do not fit a payload of shape {list(payload.shape)}"
        )
    return counts, payload


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The route's output for one step: `counts[i]` tokens of sequence i, as the step wanted."""

    session: SessionId
    epoch: int
    step: int
    counts: tuple[int, ...]
    payload: tensors.WireTensor
    ids: tensors.WireTensor | None = None
    """[tokens, k] token ids of a payload of the k largest logits, else None."""
    totals: tensors.WireTensor | None = None
    """[tokens] float32 beside the ids, as `StepSpec.temperature` says, else None."""
    compute_ms: float = 0.0
    """Milliseconds that the step spent computing at the last hop."""
    times: bytes | None = None
    """How long each hop had the step (`timings.py`); None = its client did not ask."""

    @property
    def num_bytes(self) -> int:
        """Of the buffers."""
        return sum(one.num_bytes for one in (self.payload, self.ids, self.totals) if one is not None)

    def encode(self) -> bytes:
        header = {"t": "reply", "session": self.session, "epoch": self.epoch, "step": self.step, "counts": list(self.counts),
                  "payload": self.payload.header(), "compute": self.compute_ms}  # fmt: skip
        if self.times is not None:
            header["times"] = self.times
        if self.ids is None:
            return frame.encode(header, [self.payload.data])
        header["ids"] = self.ids.header()
        if self.totals is None:
            return frame.encode(header, [self.payload.data, self.ids.data])
        header["totals"] = self.totals.header()
        return frame.encode(header, [self.payload.data, self.ids.data, self.totals.data])

    @classmethod
    def parse(cls, received: frame.Frame) -> Reply:
        header = received.header
        counts, payload = _counts_and_payload(received)
        return cls(
            session=parse_session_id(header.get("session")),
            epoch=fields.integer(header, "epoch", 0, MAX_EPOCH),
            step=fields.integer(header, "step", 0, MAX_STEP),
            counts=counts,
            payload=payload,
            ids=_ids(received, payload.shape),
            totals=_totals(received, payload.shape),
            compute_ms=fields.number(header, "compute", 0, 1e9),
            times=timings.parse(header),
        )


def _ids(received: frame.Frame, shape: tuple[int, ...]) -> tensors.WireTensor | None:
    if received.header.get("ids") is None:
        return None
    ids = tensors.parse(received.header["ids"], received.buffers, 1)
    if (ids.dtype, ids.shape, ids.codec) != ("int32", shape, "none"):
        raise BadRequestError(f"ids must be int32 {list(shape)} like the values, got {ids.dtype} {list(ids.shape)}")
    return ids


def _totals(received: frame.Frame, shape: tuple[int, ...]) -> tensors.WireTensor | None:
    if received.header.get("totals") is None:
        return None
    totals = tensors.parse(received.header["totals"], received.buffers, 2)
    if (totals.dtype, totals.shape, totals.codec) != ("float32", shape[:1], "none") or not tensors.is_finite(totals):
        raise BadRequestError(f"totals must be finite float32 {list(shape[:1])}, got {totals.dtype} {list(totals.shape)}")
    return totals


Message = Open | Step | History | Reroute | Close | Expect | HopLost | Attach | Reply
_KINDS: dict[str, Callable[[frame.Frame], Message]] = {
    "open": Open.parse, "step": Step.parse, "history": History.parse, "reroute": Reroute.parse, "close": Close.parse,
    "expect": Expect.parse, "lost": HopLost.parse, "attach": Attach.parse, "reply": Reply.parse,
}  # fmt: skip


def parse(data: bytes) -> Message:
    """The message in a frame; FrameError, TensorFormatError or BadRequestError says what is wrong with it."""
    return frame.parse_one_of(data, _KINDS)
