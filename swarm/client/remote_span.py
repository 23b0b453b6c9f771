"""`model.blocks[a:b]`: a part of the chain for a caller's hidden states.

    with model.blocks[4:12].session() as session:      # keys and values stay at the hops
        out = session.step(hidden)                     # [B, T, H] in, [B, T, H] out
        more = session.step(next_hidden)
    out = model.blocks[4:12](hidden)                   # without a session: nothing is kept

a and b need not be edges of what nodes host. As in a model's own session, a hop that dies is replaced, and no value changes.
Without a session it is differentiable: a gradient of `hidden` comes back through the blocks, which are frozen (`gradients.py`).

Shapes: B sequences, T new tokens of each, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from protocols.defaults import MAX_ROWS
from protocols.errors import BadRequestError
from protocols.ids import Span
from protocols.words import counted
from swarm.client import checks
from swarm.client.backend import Backend, StepSession
from swarm.client.blocks import StepPlan, carry
from swarm.client.cache import RemoteCache


class RemoteSpan:
    """Blocks [start, stop) of a model, wherever they are. Slices of it count from its own first block, as those of a list do."""

    def __init__(self, backend: Backend, span: Span, hidden_size: int, max_positions: int | None) -> None:
        self.span, self.hidden_size = span, hidden_size
        self._backend, self._max_positions = backend, max_positions

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, index: int | slice) -> RemoteSpan:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1 or start >= stop:
                raise BadRequestError(
                    f"blocks are taken as [start:stop] of 0:{len(self)}, in order and at least one, got {index}"
                )
        else:
            start = range(len(self))[index]  # IndexError ends a loop over the blocks
            stop = start + 1
        span = Span(self.span.start + start, self.span.start + stop)
        return RemoteSpan(self._backend, span, self.hidden_size, self._max_positions)

    def __iter__(self) -> Iterator[RemoteSpan]:
        return (self[index] for index in range(len(self)))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Each sequence from its first token on; nothing is kept. Differentiable if autograd records and `hidden` requires a gradient."""
        self.check(hidden, 0)
        return carry(StepPlan(cache=None), hidden, self._backend, blocks=self.span)

    def session(self) -> SpanSession:
        """Sequences that continue from step to step. Nothing is sent before the first step."""
        return SpanSession(self, RemoteCache(self.open))

    def open(self) -> StepSession:
        return self._backend.open(self.span)

    def check(self, hidden: object, past: int) -> None:
        """BadRequestError if these are no hidden states that could follow `past` tokens. Nothing has been sent then."""
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
            got = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
            raise BadRequestError(f"blocks take hidden states [batch, tokens, {self.hidden_size}] of floats, got {got}")
        rows, tokens, width = hidden.shape if hidden.dim() == 3 else (0, 0, 0)
        if width != self.hidden_size or not tokens or not 1 <= rows <= MAX_ROWS:
            raise BadRequestError(
                f"blocks take hidden states [batch, tokens, {self.hidden_size}] with 1 to {MAX_ROWS} sequences and at least 1 token, "
                f"got shape {list(hidden.shape)}"
            )
        if not bool(hidden.isfinite().all()):
            raise BadRequestError("hidden states must be finite, got NaN or infinity; look at what made them")
        checks.check_length(past + tokens, self._max_positions)

    def __repr__(self) -> str:
        return f"RemoteSpan(blocks {self.span} of {self._backend.model.name})"


class SpanSession:
    """Sequences of one length at every hop of a span. `close`, the end of `with` or the last reference frees their memory."""

    def __init__(self, blocks: RemoteSpan, cache: RemoteCache) -> None:
        self.blocks = blocks
        self._cache = cache

    @property
    def position(self) -> int:
        """Tokens that every sequence has: the position of the next one."""
        return self._cache.columns

    @property
    def journey(self) -> Any:
        """The session's way through the swarm (`route`, `replaced`), for people; None before the first step."""
        return self._cache.journey

    def step(self, hidden: Tensor) -> Tensor:
        """Append T tokens to each sequence; the first step makes the sequences. After an error the session has ended."""
        self.blocks.check(hidden, self.position)
        checks.check_rows(hidden.shape[0], self._cache.rows, "this session")
        return carry(StepPlan(cache=self._cache), hidden, self.blocks._backend, blocks=self.blocks.span)

    def crop(self, tokens: int) -> None:
        """Forget the last `tokens` tokens of every sequence. It travels with the next step."""
        if not 0 <= tokens <= self.position:
            raise BadRequestError(
                f"crop takes 0 to {counted(self.position, 'token')}, as many as each sequence has, got {tokens}"
            )
        self._cache.crop(-tokens)

    def fork(self) -> SpanSession:
        """A second session with the same sequences; both go on and end independently, from any threads."""
        return SpanSession(self.blocks, self._cache.fork())

    def close(self) -> None:
        self._cache.close()

    def __enter__(self) -> SpanSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SpanSession({self.blocks!r}, position {self.position})"
