"""Steps and histories: messages that carry tokens towards the last hop.

A **step** carries some consecutive tokens of a session's sequences through every hop; the client numbers steps from 0.
A **History** stands for the steps 0 … base-1: each sequence's retained inputs, as one prefill, for a hop that has lost them or never
had them.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import fields, frame, tensors, timings
from protocols.defaults import MAX_ROWS, MAX_STEP_TOKENS
from protocols.errors import BadRequestError
from protocols.ids import SessionId, parse_session_id
from protocols.operations import MAX_LENGTH, Op, pack_op, parse_ops
from protocols.route import MAX_EPOCH
from protocols.step_spec import KINDS, PASS_ON, StepSpec
from protocols.words import counted

MAX_STEP = 1 << 40

TRACE_BYTES = 16 + 8 + 1
"""A W3C trace context: the trace's id, the id of the span above, flags. Source: https://www.w3.org/TR/trace-context/"""


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
        if spec.own:
            header["own"] = spec.own
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
        counts, payload = parse_counts(received)
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
        counts, payload = parse_counts(received)
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


def _positions(header: fields.Header, num_tokens: int) -> tuple[int, ...] | None:
    if header.get("positions") is None:
        return None
    positions = fields.integers(header, "positions", MAX_STEP_TOKENS, 0, MAX_LENGTH)
    if len(positions) != num_tokens:
        raise BadRequestError(f"{counted(len(positions), 'position')} for {counted(num_tokens, 'token')}")
    return positions


def parse_counts(received: frame.Frame) -> tuple[tuple[int, ...], tensors.WireTensor]:
    counts = fields.integers(received.header, "counts", MAX_ROWS, 0, MAX_STEP_TOKENS)
    payload = tensors.parse(received.header.get("payload"), received.buffers)
    if sum(counts) > MAX_STEP_TOKENS or not payload.shape or payload.shape[0] != sum(counts):
        raise BadRequestError(
            f"counts {list(counts)[:8]} (limit {MAX_STEP_TOKENS} tokens) do not fit a payload of shape {list(payload.shape)}"
        )
    return counts, payload
