"""A client's precision does not depend on false records.

What records claim beyond the model, or in formats of their own, decides nothing.
"""

from __future__ import annotations

from protocols.hosted import Hosted
from protocols.ids import ModelId, Span
from swarm.client.connection import DTYPES
from swarm.weights.served import best_dtype
from tests.hosting import hosted

MODEL = ModelId("tiny", "a" * 64)


def served(dtype: str, start: int, stop: int, num_blocks: int = 4) -> Hosted:
    return hosted(MODEL, Span(start, stop), num_blocks, dtype=dtype)[0]


def test_the_format_of_most_blocks_and_float32_in_doubt() -> None:
    assert best_dtype([], 4, DTYPES) == "float32"
    assert best_dtype([served("bfloat16", 0, 4), served("float32", 0, 3)], 4, DTYPES) == "bfloat16"
    assert best_dtype([served("bfloat16", 0, 4), served("float32", 0, 2), served("float32", 2, 4)], 4, DTYPES) == "float32"


def test_a_record_that_lies_decides_nothing() -> None:
    honest = [served("float32", 0, 2), served("float32", 2, 4)]
    assert best_dtype([*honest, served("bfloat16", 0, 10_000, 10_000)], 4, DTYPES) == "float32"
    assert best_dtype([*honest, served("float3", 0, 10_000, 10_000)], 4, DTYPES) == "float32"
