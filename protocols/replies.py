"""What the last hop sends to the client for each step."""

from __future__ import annotations

from dataclasses import dataclass

from protocols import fields, frame, tensors, timings
from protocols.errors import BadRequestError
from protocols.ids import SessionId, parse_session_id
from protocols.route import MAX_EPOCH
from protocols.steps import MAX_STEP, parse_counts


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
    """[tokens] float32 beside the ids, or [tokens, 2], as `StepSpec.temperature` says, else None."""
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
        counts, payload = parse_counts(received)
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
    is_alike = (totals.dtype, totals.codec) == ("float32", "none") and totals.shape in (shape[:1], (*shape[:1], 2))
    if not is_alike or not tensors.is_finite(totals):
        raise BadRequestError(f"totals must be finite float32 {list(shape[:1])}, got {totals.dtype} {list(totals.shape)}")
    return totals
