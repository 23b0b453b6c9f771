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
        return made._run([piece.forward() for piece in made._pieces]), made

    def backward(self, gradient: Tensor) -> Tensor:
        """[B, T, H] on the CPU: the gradient of the input, from that of the output."""
        values = gradient.to("cpu", self._dtype).contiguous()
        if not bool(values.isfinite().all()):
            raise BadRequestError("the gradient of the blocks' output has NaN or infinities: look at the loss")
        rows = [compression.pack(rows) for rows in values.split(self._rows)]
        return self._run([piece.backward(own) for piece, own in zip(self._pieces, rows, strict=True)])

    def close(self) -> None:
        """End what is open at nodes."""
        _close(self._loop, self._pieces)

    def _run(self, work: Sequence[Coroutine[Any, Any, Tensor]]) -> Tensor:
        done = self._loop.run(_all(work))
        return done[0] if len(done) == 1 else torch.cat(done)


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
