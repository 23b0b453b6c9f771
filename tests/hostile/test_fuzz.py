"""Mutated inputs get typed refusals, in bounded memory and time.

Here are 30,000 for all parsers together; `scripts/fuzz` runs a million.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Iterator

import msgpack
import pytest

from protocols.errors import BadRequestError, SwarmError
from protocols.inference import _KINDS
from tests.hostile.fuzzing import SLOW_S, Verdict, run
from tests.hostile.mutation import MAX_BYTES, mutated
from tests.hostile.parsers import Parser, all_parsers

INPUTS = 30_000
PARSERS = all_parsers()
OTHERS = tuple(sample for parser in PARSERS.values() for sample in parser.samples)


def test_every_kind_of_message_is_among_the_parsers() -> None:
    assert set(_KINDS) <= set(PARSERS)


@pytest.mark.parametrize("name", PARSERS)
def test_samples_are_read(name: str) -> None:
    """Otherwise every mutation would be refused for the same first reason."""
    for sample in PARSERS[name].samples:
        PARSERS[name].read(sample)


def test_mutated_inputs_get_typed_refusals_and_cost_little() -> None:
    seed = secrets.randbelow(1 << 30)
    print("seed", seed, "- see one again: scripts/fuzz --seed", seed, "--only PARSER --first NUMBER --inputs 1")
    verdicts = [Verdict(name) for name in PARSERS]
    for verdict in verdicts:
        run(verdict.name, PARSERS[verdict.name], OTHERS, seed, 0, -(-INPUTS // len(PARSERS)), verdict)
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    assert not faults, "\n".join(faults)
    refused = sum(verdict.refused for verdict in verdicts)
    assert INPUTS // 2 < refused < INPUTS, "either nothing is wrong with the inputs, or nothing right"


def test_the_fuzzer_finds_what_it_is_to_find() -> None:
    """Parsers with a fault each: an untyped error, memory, time."""

    def untyped(data: bytes) -> None:
        msgpack.unpackb(data)

    def greedy(data: bytes) -> None:
        bytes(len(data) + (1 << 20))

    def slow(data: bytes) -> None:
        ends_s = time.thread_time() + 2 * SLOW_S
        while time.thread_time() < ends_s:
            pass

    for read, word, num_inputs in ((untyped, "Error", 20), (greedy, "allocates", 20), (slow, " ms", 3)):
        verdict = Verdict("bad")
        run("bad", Parser(read, (b"\x92\x01\x02",)), (b"",), 1, 0, num_inputs, verdict)
        assert any(word in fault for fault in verdict.faults), verdict.faults


def test_an_input_has_a_name_and_a_limit() -> None:
    def some(seed: str) -> Iterator[bytes]:
        rng = random.Random(seed)
        return (mutated(rng, OTHERS[number % len(OTHERS)], OTHERS) for number in range(2_000))

    first, again = list(some("1")), list(some("1"))
    assert first == again and first != list(some("2"))
    assert max(map(len, first)) <= MAX_BYTES and len({*first}) > 1_500


def test_a_refusal_is_one_short_line() -> None:
    with pytest.raises(SwarmError) as caught:
        PARSERS["invitation"].read("swarm1é".encode())
    assert isinstance(caught.value, BadRequestError) and "\n" not in str(caught.value)
