"""Self-test of an engine: does it compute what the span computes?

It runs at load, through the path that will serve. Two sequences of different lengths go through prefill chunks and single tokens, batched;
one is forked and cropped. All outputs are compared with the span's run over each whole sequence without a cache. Sliding windows are made
small for the test, so that a few tokens leave them.
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
"""Tokens of the test's sliding window, if the model's own is larger than `OWN_WINDOW`."""

OWN_WINDOW = 16
"""Tokens of the largest window that the test leaves as it is."""

TEST_LIMIT_BYTES = 1 << 50
"""Bytes of K/V that the test may take: no limit."""

EXACT = 5e-5
"""Largest error in float32, relative to the largest output. A right path has at most 4e-6, or 2e-5 if a recurrent block has one algorithm
for prefill chunks and another for single tokens (qwen3_next)."""

ROUGH = 0.1
"""Largest median error of a token in half precision, relative to what the span adds to it; wrong masks give several times that.
It is a median because a router's tie may send single tokens to other experts."""

_KEYS = ("sliding_window", "attention_chunk_size")


class SelfTest:
    """The test of one span: inputs, and the outputs that every engine must reproduce."""

    @torch.inference_mode()
    def __init__(self, span: SpanModule) -> None:
        self._span = span
        length = 16 + max((size for key in _KEYS if isinstance(size := vars(span.config).get(key), int)), default=0)
        self._inputs = [_noise(span, length, seed=1), _noise(span, 10, seed=2)]
        self._expected = [span(hidden) for hidden in self._inputs]

    def fault(self, make: Callable[[SpanModule, int], Any]) -> str | None:
        """None if the engine that `make(span, limit_bytes)` builds is exact, else what is wrong with it, in one line."""
        try:
            self._judge(self._run(make(self._span, TEST_LIMIT_BYTES)))
        except (SwarmError, AssertionError) as error:
            return str(error) or type(error).__name__
        except (
            Exception
        ) as error:  # of any class: a family's own code fails on a path that it does not support; the next engine is tried
            log.debug("self-test failed", exc_info=error)
            return " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return None

    def _run(self, engine: Any) -> list[_Chunk]:
        first, second = engine.open(), engine.open()
        sequences = {0: first, 1: second}
        rest = self._inputs[0].shape[1] - 10
        chunks = []
        for step in ([(0, 7)], [(0, 1), (1, 3)], [(0, rest), (1, 1)], [(1, 5), (0, 1)]):
            chunks += self._step(engine, sequences, step)
        twin = engine.fork(first)
        if engine.can_crop:
            engine.crop(twin, 2)
            chunks += self._step(engine, {0: twin}, [(0, 2)])
        chunks += self._step(engine, {0: twin, 1: second}, [(1, 1), (0, 1)])
        chunks += self._step(engine, sequences, [(0, 1)])
        for sequence in (first, second, twin):
            engine.close(sequence)
        if engine.used_bytes:
            raise ModelNotSupportedError(f"{engine.used_bytes} bytes stayed taken after the sequences were closed")
        return chunks

    def _step(self, engine: Any, sequences: dict[int, Any], step: list[tuple[int, int]]) -> list[_Chunk]:
        """Run one step of (sequence, new tokens): the output of each sequence."""
        places = [(index, sequences[index].length, sequences[index].length + count) for index, count in step]
        given = torch.cat([self._inputs[index][:, start:stop] for index, start, stop in places], dim=1)
        outputs = engine.step([(sequences[index], count) for index, count in step], given).split(
            [count for _, count in step], dim=1
        )
        return [_Chunk(*place, output) for place, output in zip(places, outputs, strict=True)]

    @torch.inference_mode()
    def _judge(self, chunks: list[_Chunk]) -> None:
        """ModelNotSupportedError if the outputs are not what the span computes."""
        if not all(chunk.output.isfinite().all() for chunk in chunks):
            raise ModelNotSupportedError("it computes values that are no numbers")
        error = self._error(chunks)
        most = bound(self._span.dtype)
        if error > most:
            raise ModelNotSupportedError(f"it differs by {error:.1e} from the run without a cache, at most {most:.0e} is served")

    def _error(self, chunks: list[_Chunk]) -> float:
        """The `distance` of all outputs from the span's own."""
        output = torch.cat([chunk.output for chunk in chunks], dim=1)
        expected = torch.cat([self._expected[chunk.index][:, chunk.start : chunk.stop] for chunk in chunks], dim=1)
        given = torch.cat([self._inputs[chunk.index][:, chunk.start : chunk.stop] for chunk in chunks], dim=1)
        return distance(output, expected, given)


def distance(output: Tensor, expected: Tensor, given: Tensor) -> float:
    """The error of `output` relative to `expected`, what a span computes from `given`, all [1, T, H]. See EXACT (float32) and ROUGH."""
    if output.dtype == torch.float32:
        return float((output - expected).abs().max() / expected.abs().max())
    output, expected, given = output.float(), expected.float(), given.float()
    return float(((output - expected).norm(dim=-1) / (expected - given).norm(dim=-1).clamp_min(1e-12)).median())


def bound(dtype: torch.dtype) -> float:
    """The largest `distance` of a right output."""
    return EXACT if dtype == torch.float32 else ROUGH


def is_close(output: Tensor, expected: Tensor, given: Tensor) -> bool:
    """Is the output as right as an engine's must be?"""
    return distance(output, expected, given) <= bound(output.dtype)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Tokens [start, stop) of input `index`, and the engine's output for them, [1, stop - start, H]."""

    index: int
    start: int
    stop: int
    output: Tensor


@contextmanager
def small_windows(span: SpanModule) -> Iterator[None]:
    """Set large sliding windows and values of `attention_chunk_size` to `WINDOW` within a `with` block, for a short test.

    transformers reads the config when it makes masks; modules that keep a copy of the number are set, too.
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
