"""Predictions cost a gateway a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from node.dashboard import estimates
from node.dashboard.estimates import MAX_MACHINES, Estimates
from node.watching import sizes
from node.watching.look import seen
from node.watching.watcher import Watcher
from node.watching.what_if import Sizes
from protocols.errors import OverloadedError
from protocols.ids import ModelId
from protocols.records import PeerRecord
from tests.node.dashboard.made_swarm import MODEL, MadeSource, many
from tests.virtual_time import virtual_time

RECORDS = many(MAX_MACHINES + 20, 32)


def watcher() -> Watcher:
    made = Watcher(MadeSource(RECORDS).met)
    made.look = seen(0.0, {MODEL.name: RECORDS}, (), {})
    return made


async def test_one_prediction_runs_at_a_time_beside_the_event_loop_and_of_so_many_machines() -> None:
    began = asyncio.Event()

    async def sizes_of(model: ModelId, records: Sequence[PeerRecord]) -> Sizes:
        began.set()
        return Sizes(name=model.name, num_blocks=32, block_bytes=100_000_000)

    made = Estimates(watcher(), sizes_of)
    first = asyncio.create_task(made.predicted(sizes.of_size(7e9, 32, 2)))
    await began.wait()
    with pytest.raises(OverloadedError, match="another prediction is under way"):
        await made.predicted(sizes.of_size(7e9, 32, 2))
    turns = 0
    while not first.done():
        await asyncio.sleep(0.001)
        turns += 1
    having, prediction = first.result()
    assert len(having) == len(prediction.placed) == MAX_MACHINES and turns > 1


@virtual_time
async def test_a_manifest_that_does_not_come_ends_no_prediction() -> None:
    async def never(model: ModelId, records: Sequence[PeerRecord]) -> Sizes:
        await asyncio.sleep(3_600)
        raise AssertionError

    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await Estimates(watcher(), never).block_bytes() == {} and loop.time() - began_s == pytest.approx(estimates.FIND_S)
