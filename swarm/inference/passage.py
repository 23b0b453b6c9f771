"""A step's passage through one hop: checked and made a tensor, computed, checked and made bytes again. The hop decides where they go.

Token ids and embeddings are taken by the first hop of a route only, logits given by the last only, and only where the ends are hosted.
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
from protocols.inference import WANT_NONE, History, Reply, Route, Step
from protocols.tensors import WireTensor
from protocols.words import counted
from swarm.inference import chunks
from swarm.inference.compute import ORDINARY, PASS_ON, Ask, EndsShape, SessionCompute, Urgency

FEW_BYTES = 1 << 14
"""Below this, looking at bytes is faster than asking torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in its route a hop is; the first and the last may be the same."""

    is_first: bool
    is_last: bool
    takes_ids: bool
    """The first hop, and its blocks are the model's first ones."""
    gives_logits: bool
    """The last hop, and its blocks are the model's last ones."""


def place_of(route: Route, index: int, num_blocks: int) -> Place:
    """The place of hop `index` in a route through a model of `num_blocks` blocks."""
    is_first, is_last, span = index == 0, index == len(route) - 1, route[index].span
    return Place(
        is_first=is_first,
        is_last=is_last,
        takes_ids=is_first and span.start == 0,
        gives_logits=is_last and span.stop == num_blocks,
    )


@dataclass(frozen=True, slots=True)
class Passed:
    """What a step or history became here: as many tokens as it had or, at the last hop, as it wants."""

    values: WireTensor
    ids: WireTensor | None = None


async def forward(compute: SessionCompute, message: Step | History, place: Place) -> Passed:
    """Compute a step, or a part of a history, once. Raises the error with which this hop is to be reported lost.

    That is NonsenseError where what the hop above sent cannot be used, and InternalError where what we computed cannot.
    """
    ask = _ask(compute.ends, message, place)
    try:
        values = _values(compute, message)
    except BadRequestError as error:
        if place.is_first:
            raise
        raise NonsenseError(f"{error}; the hop above sent it, or this one misread it") from error
    positions = None if message.positions is None else torch.tensor(message.positions)
    ops, urgency = (message.ops, _urgency(message)) if isinstance(message, Step) else ((), ORDINARY)
    output = await compute.step(ops, message.counts, values, positions, urgency, ask)
    packed = compression.pack(output.values)
    if not _is_finite(packed, output.values):
        raise InternalError(
            "this peer computed NaN or infinity: its weights or device are damaged, or its number format is too small"
        )
    return Passed(packed, None if output.ids is None else compression.pack(output.ids))


def reply_to(step: Step, output: Passed, compute_ms: float) -> Reply:
    """What the last hop answers the client."""
    counts = chunks.kept(step.want, step.counts)
    return Reply(session=step.session, epoch=step.epoch, step=step.step, counts=counts, payload=output.values, ids=output.ids,
                 compute_ms=compute_ms)  # fmt: skip


def _urgency(step: Step) -> Urgency:
    return Urgency(priority=min(0, step.priority), expires_s=time.monotonic() + step.budget_ms / 1e3)


def _ask(ends: EndsShape | None, message: Step | History, place: Place) -> Ask:
    """What the node has to make of it; SpanNotServedError where that needs the ends, and they are elsewhere."""
    if message.kind != "hidden" and not place.is_first:
        raise NonsenseError(f"a hop behind the first takes hidden states, the hop above sent {message.kind}")
    if isinstance(message, History):
        result, want, top = "hidden", WANT_NONE, 0
    else:
        result, want, top = message.result, message.want, message.top
    if (message.kind != "hidden" and not place.takes_ids) or (place.is_last and result != "hidden" and not place.gives_logits):
        raise BadRequestError(
            f"a route through a part of the model takes and gives hidden states, got {message.kind} and {result}: "
            "bring hidden states, or open a session over all blocks"
        )
    needs_ends = message.kind != "hidden" or (place.is_last and result != "hidden")
    if needs_ends and ends is None:
        raise SpanNotServedError(
            f"this peer hosts blocks without the ends: it takes and gives hidden states, not {message.kind} and {result}; "
            "a thin client needs a node with --ends"
        )
    if not place.is_last:
        return PASS_ON if message.kind == "hidden" else Ask(kind=message.kind)
    if ends is not None and result != "hidden":
        _check_reply_size(want, message.counts, ends.vocab_size)
        if top > ends.vocab_size:
            raise BadRequestError(f"the {top} largest logits were asked for, this model has {ends.vocab_size}")
    return Ask(kind=message.kind, want=want, result=result, top=top)


def _check_reply_size(want: int, counts: Sequence[int], vocab_size: int) -> None:
    tokens = sum(chunks.kept(want, counts))
    if tokens > 1 and tokens * vocab_size * 4 > REPLY_BYTES:
        raise BadRequestError(
            f"logits of {counted(tokens, 'token')} take {tokens * vocab_size * 4} bytes, "
            f"a step gets at most {REPLY_BYTES}: ask in smaller steps"
        )


def _values(compute: SessionCompute, message: Step | History) -> Tensor:
    """The tokens as a tensor, of the shape, dtype and range that this model takes; BadRequestError otherwise."""
    if message.kind == "ids":
        assert compute.ends is not None
        return _checked_ids(message.payload, compute.ends.vocab_size)
    width = compute.hidden_size if message.kind == "hidden" else compute.ends.embed_width if compute.ends is not None else 0
    values = compression.unpack(message.payload)
    name = "hidden states" if message.kind == "hidden" else "embeddings"
    if values.shape[1:] != (width,) or values.dtype != compute.dtype:
        raise BadRequestError(f"{name} must be [tokens, {width}] {compute.dtype}, got {list(values.shape)} {values.dtype}")
    if not _is_finite(message.payload, values):
        raise BadRequestError(f"{name} must be finite, got NaN or infinity")
    return values


def _checked_ids(payload: WireTensor, vocab_size: int) -> Tensor:
    """Every id is in the vocabulary: an index beyond a table ends a GPU's context, and with it everybody's session."""
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
