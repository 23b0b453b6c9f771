"""Does an engine compute what the span computes? Asked at load, through the very path that will serve.

Two rows of different lengths go through chunks and single tokens, batched; one is forked and cropped; all outputs are compared with
the span's run over each whole row without a cache. Sliding windows are made small for the test, so that a few tokens leave them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from protocols.errors import ModelNotSupportedError, SwarmError
from swarm.models.span import SpanModule

log = logging.getLogger(__name__)

WINDOW = 5
"""Window of the test where the model's own is larger than `OWN_WINDOW`."""
OWN_WINDOW = 16
TEST_LIMIT_BYTES = 1 << 50

EXACT = 5e-5
"""Largest error in float32, relative to the largest output. Right paths: 4e-6 at most, 2e-5 where a recurrent block has one algorithm
for chunks and another for single tokens (qwen3_next)."""
ROUGH = 0.1
"""Median error of a token in half precision, relative to what the span adds to it; wrong masks give several times that.
A median, since a router's tie may send single tokens to other experts."""

_KEYS = ("sliding_window", "attention_chunk_size")


class SelfTest:
    """The test of one span: inputs, and the outputs that every engine has to reproduce."""

    @torch.inference_mode()
    def __init__(self, span: SpanModule) -> None:
        self._span = span
        length = 16 + max((size for key in _KEYS if isinstance(size := vars(span.config).get(key), int)), default=0)
        self._inputs = [_noise(span, length, seed=1), _noise(span, 10, seed=2)]
        self._expected = [span(hidden) for hidden in self._inputs]

    def fault(self, make: Callable[[SpanModule, int], Any]) -> str | None:
        """None where the engine that `make` builds is exact, else what is wrong with it."""
        try:
            self._judge(self._run(make(self._span, TEST_LIMIT_BYTES)))
        except (SwarmError, AssertionError) as error:
            return str(error) or type(error).__name__
        except Exception as error:  # a family's own code fails as it likes on a path that is not for it: try the next engine
            log.debug("self-test failed", exc_info=error)
            return " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return None

    def _run(self, engine: Any) -> list[_Piece]:
        first, second = engine.open(), engine.open()
        rows = {0: first, 1: second}
        rest = self._inputs[0].shape[1] - 10
        pieces = []
        for step in ([(0, 7)], [(0, 1), (1, 3)], [(0, rest), (1, 1)], [(1, 5), (0, 1)]):
            pieces += self._step(engine, rows, step)
        twin = engine.fork(first)
        if engine.can_crop:
            engine.crop(twin, 2)
            pieces += self._step(engine, {0: twin}, [(0, 2)])
        pieces += self._step(engine, {0: twin, 1: second}, [(1, 1), (0, 1)])
        pieces += self._step(engine, rows, [(0, 1)])
        for row in (first, second, twin):
            engine.close(row)
        if engine.used_bytes:
            raise ModelNotSupportedError(f"{engine.used_bytes} bytes stayed taken after the rows were closed")
        return pieces

    def _step(self, engine: Any, rows: dict[int, Any], step: list[tuple[int, int]]) -> list[_Piece]:
        """Run one step; what came out of each row."""
        places = [(index, rows[index].length, rows[index].length + count) for index, count in step]
        given = torch.cat([self._inputs[index][:, start:stop] for index, start, stop in places], dim=1)
        outputs = engine.step([(rows[index], count) for index, count in step], given).split([count for _, count in step], dim=1)
        return [_Piece(*place, output) for place, output in zip(places, outputs, strict=True)]

    @torch.inference_mode()
    def _judge(self, pieces: list[_Piece]) -> None:
        """ModelNotSupportedError where the pieces are not what the span computes."""
        if not all(piece.output.isfinite().all() for piece in pieces):
            raise ModelNotSupportedError("it computes values that are no numbers")
        error = self._error(pieces)
        most = bound(self._span.dtype)
        if error > most:
            raise ModelNotSupportedError(f"it differs by {error:.1e} from the run without a cache, at most {most:.0e} is served")

    def _error(self, pieces: list[_Piece]) -> float:
        """How far outputs are from the span's own."""
        output = torch.cat([piece.output for piece in pieces], dim=1)
        expected = torch.cat([self._expected[piece.index][:, piece.start : piece.stop] for piece in pieces], dim=1)
        given = torch.cat([self._inputs[piece.index][:, piece.start : piece.stop] for piece in pieces], dim=1)
        return distance(output, expected, given)


def distance(output: Tensor, expected: Tensor, given: Tensor) -> float:
    """How far outputs are from what a span makes of `given`: the largest error in float32, the median token's otherwise."""
    if output.dtype == torch.float32:
        return float((output - expected).abs().max() / expected.abs().max())
    output, expected, given = output.float(), expected.float(), given.float()
    return float(((output - expected).norm(dim=-1) / (expected - given).norm(dim=-1).clamp_min(1e-12)).median())


def bound(dtype: torch.dtype) -> float:
    """The largest `distance` at which outputs count as right."""
    return EXACT if dtype == torch.float32 else ROUGH


def is_close(output: Tensor, expected: Tensor, given: Tensor) -> bool:
    """Is it as right as an engine has to be?"""
    return distance(output, expected, given) <= bound(output.dtype)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens [start, stop) of input `index`, and what an engine made of them."""

    index: int
    start: int
    stop: int
    output: Tensor


@contextmanager
def small_windows(span: SpanModule) -> Iterator[None]:
    """Set large sliding windows and attention chunks to `WINDOW` for a while, so that a short test tells whether they are obeyed.

    Configs are what transformers reads when it makes masks; modules that keep the number for themselves are set alike.
    """
    before: list[tuple[Any, str, int]] = []
    for holder in {id(holder): holder for holder in (span.config, *span.decoder.modules())}.values():
        for key, size in list(vars(holder).items()):
            is_window = ("window" in key and "layer" not in key) or key == "attention_chunk_size"
            if is_window and type(size) is int and size > OWN_WINDOW:
                before.append((holder, key, size))
                setattr(holder, key, WINDOW)
    try:
        yield
    finally:
        for holder, key, size in before:
            setattr(holder, key, size)


def _noise(span: SpanModule, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, span.hidden_size, generator=generator).to(span.device, span.dtype)
