"""A batch on its way through remote blocks and back, for threads.

The batch goes in pieces of some sequences, each a pass of its own, all at once: while one hop computes a piece, others compute theirs.

Shapes: B sequences of T tokens, H hidden size.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from protocols import compression
from protocols.errors import BadRequestError, PassTooLargeError
from protocols.ids import Span
from protocols.tensors import WireTensor
from protocols.weights_id import Weights
from swarm.client.loop import BackgroundLoop
from swarm.client.remote_pass import PassWays, RemotePass

T = TypeVar("T")


class SwarmPass:
    """As `backend.OpenPass`. Letting it go closes it."""

    def __init__(self, loop: BackgroundLoop, pieces: Sequence[RemotePass], sizes: Sequence[int], dtype: torch.dtype) -> None:
        """sizes: how many sequences each piece has. dtype: of the route."""
        self._loop, self._pieces, self._sizes, self._dtype = loop, pieces, sizes, dtype
        weakref.finalize(self, _close, loop, pieces).atexit = False

    @classmethod
    def begin(cls, loop: BackgroundLoop, ways: PassWays, hidden: Tensor, blocks: Span | None) -> tuple[Tensor, SwarmPass]:
        """Run the forward. hidden: [B, T, H] on the CPU, in the route's dtype; it must not change later."""
        made: list[RemotePass] = []
        try:
            done = loop.run(_forward(ways, hidden, blocks, made))
        except BaseException:
            _close(loop, made)
            raise
        pieces, outputs = zip(*done, strict=True)
        return _joined(outputs), cls(loop, pieces, [len(output) for output in outputs], hidden.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        """[B, T, H] on the CPU: the gradient of the input, from that of the output."""
        values = gradient.to("cpu", self._dtype).contiguous()
        if not bool(values.isfinite().all()):
            raise BadRequestError("the gradient of the blocks' output has NaN or infinities: look at the loss")
        rows = [compression.pack(rows) for rows in values.split(list(self._sizes))]
        return _joined(self._loop.run(_backward(self._pieces, rows)))

    def close(self) -> None:
        """End what is open at nodes."""
        _close(self._loop, self._pieces)


async def _forward(
    ways: PassWays, hidden: Tensor, blocks: Span | None, made: list[RemotePass]
) -> list[tuple[RemotePass, Tensor]]:
    """All pieces by the same weights, each with its output. made: takes every pass, also if an error is raised."""
    weights = await ways.weights(blocks)
    rows = hidden.split(max(1, ways.pieces.tokens // hidden.shape[1]))
    return _chained(await _all([_through(ways, own, blocks, weights, made) for own in rows]))


async def _through(
    ways: PassWays, rows: Tensor, blocks: Span | None, weights: Weights, made: list[RemotePass]
) -> list[tuple[RemotePass, Tensor]]:
    """Some sequences in one pass; in halves, if nodes have no memory for so many at once."""
    piece = RemotePass(ways, compression.pack(rows), blocks)
    made.append(piece)
    try:
        return [(piece, await piece.forward(weights))]
    except PassTooLargeError:
        if len(rows) == 1:
            raise
    half = (len(rows) + 1) // 2
    ways.pieces.tokens = min(ways.pieces.tokens, half * rows.shape[1])
    return _chained(await _all([_through(ways, own, blocks, weights, made) for own in rows.split(half)]))


async def _backward(pieces: Sequence[RemotePass], gradients: Sequence[WireTensor]) -> list[Tensor]:
    return await _all([piece.backward(own) for piece, own in zip(pieces, gradients, strict=True)])


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """What all give; the first error once all have ended, so that none is left running."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return cast("list[T]", outcomes)


def _chained(lists: Sequence[list[T]]) -> list[T]:
    return [one for found in lists for one in found]


def _joined(done: Sequence[Tensor]) -> Tensor:
    return done[0] if len(done) == 1 else torch.cat(list(done))


def _close(loop: BackgroundLoop, pieces: Sequence[RemotePass]) -> None:
    for piece in pieces:
        loop.call_soon(partial(RemotePass.close, piece))
