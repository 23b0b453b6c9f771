"""A batch on its way through remote blocks and back, for threads.

The batch goes in pieces of some sequences, each a pass of its own, all at once: while one hop computes a piece, others compute theirs.

Shapes: B sequences of T tokens, H hidden size.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from protocols import compression
from protocols.errors import BadRequestError
from protocols.ids import Span
from swarm.client.loop import BackgroundLoop
from swarm.client.remote_pass import PassWays, RemotePass

PIECE_TOKENS = 2048
"""Tokens of one piece, if it has several sequences."""


class SwarmPass:
    """As `backend.OpenPass`. Letting it go closes it."""

    def __init__(self, loop: BackgroundLoop, ways: PassWays, hidden: Tensor, blocks: Span | None) -> None:
        """hidden: [B, T, H] on the CPU, in the route's dtype; it must not change later."""
        self._loop, self._dtype = loop, hidden.dtype
        self._rows = max(1, PIECE_TOKENS // hidden.shape[1])
        self._pieces = [RemotePass(ways, compression.pack(rows), blocks) for rows in hidden.split(self._rows)]
        weakref.finalize(self, _close, loop, self._pieces).atexit = False

    @classmethod
    def begin(cls, loop: BackgroundLoop, ways: PassWays, hidden: Tensor, blocks: Span | None) -> tuple[Tensor, SwarmPass]:
        """Run the forward."""
        made = cls(loop, ways, hidden, blocks)
        return made._joined(loop.run(_forward(ways, made._pieces, blocks))), made

    def backward(self, gradient: Tensor) -> Tensor:
        """[B, T, H] on the CPU: the gradient of the input, from that of the output."""
        values = gradient.to("cpu", self._dtype).contiguous()
        if not bool(values.isfinite().all()):
            raise BadRequestError("the gradient of the blocks' output has NaN or infinities: look at the loss")
        rows = [compression.pack(rows) for rows in values.split(self._rows)]
        work = [piece.backward(own) for piece, own in zip(self._pieces, rows, strict=True)]
        return self._joined(self._loop.run(_all(work)))

    def close(self) -> None:
        """End what is open at nodes."""
        _close(self._loop, self._pieces)

    def _joined(self, done: Sequence[Tensor]) -> Tensor:
        return done[0] if len(done) == 1 else torch.cat(list(done))


async def _forward(ways: PassWays, pieces: Sequence[RemotePass], blocks: Span | None) -> list[Tensor]:
    """All pieces by the same weights."""
    weights = await ways.weights(blocks)
    return await _all([piece.forward(weights) for piece in pieces])


async def _all(work: Sequence[Coroutine[Any, Any, Tensor]]) -> list[Tensor]:
    """What all give; the first error once all have ended, so that none is left running."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Tensor)]


def _close(loop: BackgroundLoop, pieces: Sequence[RemotePass]) -> None:
    for piece in pieces:
        loop.call_soon(partial(RemotePass.close, piece))
