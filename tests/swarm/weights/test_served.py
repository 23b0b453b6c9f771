"""A client's precision does not depend on false records.

What records claim beyond the model, or in formats of their own, decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import pytest

from protocols.errors import NoRouteError, PeerUnreachableError
from protocols.hosted import Hosted
from protocols.identity import from_seed
from protocols.ids import ModelId, Span
from protocols.records import PeerRecord
from swarm.client.connection import DTYPES
from swarm.weights.lookup import look_elsewhere, once_readable
from swarm.weights.served import best_dtype, wait_until_served
from tests.hosting import hosted
from tests.virtual_time import virtual_time

MODEL = ModelId("tiny", "a" * 64)
T = TypeVar("T")


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


@dataclass
class Waking:
    """A directory that cannot be asked for its first looks, as while p2pd is started again."""

    num_failures: int
    peers: tuple[PeerRecord, ...] = (PeerRecord(peer=from_seed(b"1" * 32).peer_id, hosted=hosted(MODEL, Span(0, 4), 4)),)

    async def snapshot(self, model: str) -> Waking:
        return self._or_fail(self)

    async def models(self) -> dict[str, int]:
        return self._or_fail({})

    def _or_fail(self, answer: T) -> T:
        self.num_failures -= 1
        if self.num_failures >= 0:
            raise PeerUnreachableError("the DHT is not running here")
        return answer


async def wait(directory: Waking, timeout_s: float) -> list[Hosted]:
    return await wait_until_served(directory, None, MODEL, None, timeout_s)  # type: ignore[arg-type]  # for errors of other weights


@virtual_time
async def test_a_model_is_waited_for_while_the_directory_cannot_be_asked() -> None:
    assert await wait(Waking(3), 60.0) == list(hosted(MODEL, Span(0, 4), 4))
    with pytest.raises(NoRouteError, match=r"waited 1 s; last failure: the DHT is not running here\)"):
        await wait(Waking(1_000), 1.0)


@virtual_time
async def test_a_name_is_looked_up_once_the_directory_can_be_asked() -> None:
    waking = Waking(3)
    assert await once_readable(lambda: look_elsewhere(waking, MODEL.name)) == ""
    with pytest.raises(PeerUnreachableError, match=r"could not be asked for 1 s: the DHT is not running here"):
        waking.num_failures = 1_000
        await once_readable(lambda: look_elsewhere(waking, MODEL.name), 1.0)
