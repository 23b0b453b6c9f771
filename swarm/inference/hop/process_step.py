"""Processes a step at one hop: check, compute, pack.

The hop decides where the result goes. Only the first hop of a route takes token ids and embeddings, and only the last gives logits;
both have to host embedding and head for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols import compression, tensors
from protocols.defaults import REPLY_BYTES
from protocols.errors import BadRequestError, InternalError, NonsenseError, SpanNotServedError
from protocols.inference import WANT_NONE, History, Reply, Step, StepSpec
from protocols.logit_changes import LogitChanges
from protocols.tensors import WireTensor
from protocols.words import counted
from swarm.inference import chunks
from swarm.inference.hop.compute import EndsShape, SessionCompute
from swarm.inference.hop.place import Place
from swarm.inference.requests import StepOutput

FEW_BYTES = 1 << 14
"""Below this, looking at bytes is faster than asking torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopOutput(StepOutput):
    """What a step came to here, and how long it waited and ran."""

    queue_ms: float = 0.0
    compute_ms: float = 0.0

    @property
    def num_bytes(self) -> int:
        """That travel on."""
        return sum([one.num_bytes for one in (self.values, self.ids, self.totals) if one is not None])


async def process_step(compute: SessionCompute, message: Step | History, place: Place) -> HopOutput:
    """Compute a step, or a part of a history, once: as many tokens come back as it had or, at the last hop, as it wants.

    Raises the error with which this hop is to be reported lost: NonsenseError if the input of the hop above cannot be used, InternalError
    if our output cannot.
    """
    spec = _spec(compute.ends, message, place)
    try:
        values = _values(compute, message.payload, spec.kind)
    except BadRequestError as error:
        if place.is_first:
            raise
        raise NonsenseError(f"{error}; the hop above sent it, or this one misread it") from error
    positions = None if message.positions is None else torch.tensor(message.positions)
    ops, expires_s = (message.ops, _expires_s(message)) if isinstance(message, Step) else ((), math.inf)
    output = await compute.step(ops, message.counts, values, positions, spec, expires_s)
    values = output.values
    if spec.result == "pooled" and len(values):  # one sum for each part in which the device ran the step
        values = values.sum(0, keepdim=True)
    packed = compression.pack(values)
    if not _is_finite(packed, values):
        raise InternalError(
            "this peer computed NaN or infinity: its weights or device are damaged, or its number format is too small"
        )
    ids, totals = (None if one is None else compression.pack(one) for one in (output.ids, output.totals))
    return HopOutput(values=packed, ids=ids, totals=totals, queue_ms=output.queue_ms, compute_ms=output.compute_ms)


def reply_to(step: Step, output: HopOutput, compute_ms: float, times: bytes | None) -> Reply:
    """What the last hop answers the client."""
    counts = step.spec.answered(chunks.kept(step.spec.want, step.counts))
    return Reply(session=step.session, epoch=step.epoch, step=step.step, counts=counts, payload=output.values, ids=output.ids,
                 totals=output.totals, compute_ms=compute_ms, times=times)  # fmt: skip


def _expires_s(step: Step) -> float:
    return time.monotonic() + step.budget_ms / 1e3


def _spec(ends: EndsShape | None, message: Step | History, place: Place) -> StepSpec:
    """What this hop has to make of it; SpanNotServedError if that needs embedding and head, and they are elsewhere."""
    spec = message.spec if isinstance(message, Step) else StepSpec(kind=message.kind, want=WANT_NONE)
    if spec.kind != "hidden" and not place.is_first:
        raise NonsenseError(f"a hop behind the first takes hidden states, the hop above sent {spec.kind}")
    gives_logits = place.is_last and spec.result != "hidden"
    if (spec.kind != "hidden" and not place.takes_ids) or (gives_logits and not place.gives_logits):
        raise BadRequestError(
            f"a route through a part of the model takes and gives hidden states, got {spec.kind} and {spec.result}: "
            "bring hidden states, or open a session over all blocks"
        )
    if (spec.kind != "hidden" or gives_logits) and ends is None:
        raise SpanNotServedError(
            f"this peer hosts blocks without embedding and head: it takes and gives hidden states, not {spec.kind} and {spec.result}; "
            "a thin client needs a node with --ends"
        )
    if gives_logits and ends is not None:
        if spec.result == "pooled":
            _check_pooled(message.counts, ends)
        else:
            _check_reply_size(spec, message.counts, ends.vocab_size)
    return spec if place.is_last else spec.passed_on()


def _check_pooled(counts: Sequence[int], ends: EndsShape) -> None:
    if len(counts) != 1:
        raise BadRequestError(f"a sum of hidden states is of one sequence, got {len(counts)}: send each in its own session")
    if not ends.can_pool:
        raise BadRequestError(
            "this model gives no final hidden states of the width of its blocks, so there are no embeddings of texts"
        )


def _check_reply_size(spec: StepSpec, counts: Sequence[int], vocab_size: int) -> None:
    tokens = sum(chunks.kept(spec.want, counts))
    size = tokens * max(4 * vocab_size, 8 * spec.num_values)
    if tokens > 1 and size > REPLY_BYTES:
        raise BadRequestError(
            f"logits of {counted(tokens, 'token')} take {size} bytes, a step gets at most {REPLY_BYTES}: ask in smaller steps"
        )
    if max(spec.top, spec.own) > vocab_size:
        raise BadRequestError(f"the {max(spec.top, spec.own)} largest logits were asked for, this model has {vocab_size}")
    if spec.changes:
        LogitChanges.parse(spec.changes, vocab_size)
    if spec.mask and len(spec.mask) != (vocab_size + 7) // 8:
        raise BadRequestError(f"a mask of {vocab_size} tokens has {(vocab_size + 7) // 8} bytes, got {len(spec.mask)}")


def _values(compute: SessionCompute, payload: WireTensor, kind: str) -> Tensor:
    """The tokens as a tensor, of the shape, dtype and range that this model takes; BadRequestError otherwise."""
    if kind == "ids":
        assert compute.ends is not None
        return _checked_ids(payload, compute.ends.vocab_size)
    width = compute.hidden_size if kind == "hidden" else compute.ends.embed_width if compute.ends is not None else 0
    values = compression.unpack(payload)
    name = "hidden states" if kind == "hidden" else "embeddings"
    if values.shape[1:] != (width,) or values.dtype != compute.dtype:
        raise BadRequestError(f"{name} must be [tokens, {width}] {compute.dtype}, got {list(values.shape)} {values.dtype}")
    if not _is_finite(payload, values):
        raise BadRequestError(f"{name} must be finite, got NaN or infinity")
    return values


def _checked_ids(payload: WireTensor, vocab_size: int) -> Tensor:
    """Every id is in the vocabulary: an index beyond a table ends a GPU's context, and with it all sessions."""
    if (payload.dtype, len(payload.shape), payload.codec) != ("int32", 1, "none"):
        raise BadRequestError(f"token ids must be int32 [tokens], got {payload.dtype} {list(payload.shape)}")
    ids = compression.unpack(payload).to(torch.long)
    if len(ids):
        low, high = (int(edge) for edge in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise BadRequestError(
                f"token id {low if low < 0 else high} is out of range: this model has ids 0 to {vocab_size - 1}"
            )
    return ids


def _is_finite(wire: WireTensor, values: Tensor) -> bool:
    """One pass: over the bytes of a few values, 2 us for a token of 768, else over the tensor; NaN is in both of its ends."""
    if wire.num_bytes <= FEW_BYTES:
        return tensors.is_finite(wire)
    return all(map(math.isfinite, values.aminmax()))
