"""Runs mutated inputs through parsers, and judges the outcome.

Allowed are typed refusals only, with little memory and in little time.

`scripts/fuzz` runs a million, `test_fuzz.py` 30,000.
"""

from __future__ import annotations

import contextlib
import random
import time
import tracemalloc
from dataclasses import dataclass, field

from protocols.errors import SwarmError
from tests.hostile.mutation import MAX_BYTES, mutated
from tests.hostile.parsers import Parser

SLOW_S = 0.02
"""CPU time of one input of at most 64 KB."""

PEAK_FACTOR, PEAK_BYTES = 4, 384 << 10
"""Most that a parser may allocate: so many times the input, and what any error and msgpack's packer (256 KB) may take."""

MEASURED = 50
"""Every so many inputs one is run again with its allocations counted, which takes ten times as long."""


@dataclass(slots=True)
class Verdict:
    """What came of one parser's inputs."""

    name: str
    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak_bytes: int = 0
    """Most that was allocated beyond PEAK_FACTOR times the input."""
    faults: list[str] = field(default_factory=list)

    def note(self, fault: str, seed: str, data: bytes) -> None:
        """At most five, with what is needed to see one again."""
        if len(self.faults) < 5:
            self.faults.append(f"{self.name}: {fault}; input {seed} of {len(data)} bytes: {data[:200].hex()}")


def run(name: str, parser: Parser, others: tuple[bytes, ...], seed: int, first: int, inputs: int, verdict: Verdict) -> None:
    """Inputs [first, first + inputs) of `seed` through one parser."""
    for number in range(first, first + inputs):
        word = f"{seed}/{name}/{number}"
        rng = random.Random(word)
        data = mutated(rng, rng.choice(parser.samples), others)
        verdict.inputs += 1
        if not _judge_time(parser, data, word, verdict):
            continue
        if number % MEASURED == 0:
            _judge_memory(parser, data, word, verdict)


def _judge_time(parser: Parser, data: bytes, word: str, verdict: Verdict) -> bool:
    """False if it raised what it must not."""
    started = time.thread_time()
    try:
        parser.read(data)
    except SwarmError as error:
        verdict.refused += 1
        if len(str(error)) > 2_500:
            verdict.note(f"an error of {len(str(error))} letters", word, data)
    except Exception as error:
        verdict.note(f"{type(error).__name__}: {str(error)[:100]}", word, data)
        return False
    spent_s = time.thread_time() - started
    if spent_s > SLOW_S:  # perhaps the machine, or the garbage collector: the best of some counts
        spent_s = min(spent_s, *(_timed(parser, data) for _ in range(9)))
        if spent_s > SLOW_S:
            verdict.note(f"{spent_s * 1e3:.0f} ms", word, data)
    verdict.slowest_s = max(verdict.slowest_s, spent_s)
    return True


def _timed(parser: Parser, data: bytes) -> float:
    started = time.thread_time()
    with contextlib.suppress(SwarmError):
        parser.read(data)
    return time.thread_time() - started


def _judge_memory(parser: Parser, data: bytes, word: str, verdict: Verdict) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(SwarmError):
            parser.read(data)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    beyond = max(0, peak - PEAK_FACTOR * len(data))
    verdict.peak_bytes = max(verdict.peak_bytes, beyond)
    if beyond > PEAK_BYTES:
        verdict.note(f"allocates {peak} bytes", word, data)


assert MAX_BYTES <= 64 << 10
