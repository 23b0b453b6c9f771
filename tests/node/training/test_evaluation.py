"""An evaluation: the whole model's loss, by forwards through real stages."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
from collections.abc import Iterator

import pytest

from node.training.metrics import EvaluationRow, mean_row
from protocols import compression
from protocols.errors import NoRouteError, VersionMismatchError
from protocols.records import PeerRecord
from protocols.roles import Role
from protocols.units import Ends
from swarm.directory.snapshot import Snapshot
from swarm.rpc import ChannelPool
from swarm.training.evaluation import Evaluation
from swarm.training.members import Members
from swarm.training.pipeline import Drawn
from tests.node.training.toy_run import NUM_BLOCKS, RUN, THIRDS, Batch, TrainingNode, batch, running
from tests.node.training.toy_stage import whole
from tests.protocols.samples import RUN as SPEC

NUM = 8


@dataclasses.dataclass
class OneSnapshot:
    """A directory that shows these nodes."""

    nodes: list[TrainingNode]

    async def snapshot(self, model: str) -> Snapshot:
        return Snapshot(model, tuple(_record(node) for node in self.nodes), 0.0)


def _record(node: TrainingNode) -> PeerRecord:
    return PeerRecord(
        peer=node.identity.peer_id, name="node", software="test", addresses=(node.address,), certificate=node.certificate.der,
        p2p_addresses=(), upload_bytes_s=0, roles=(Role("stage", RUN, Ends()),),
    )  # fmt: skip


def _drawn(own: Batch) -> Drawn:
    return Drawn(
        ids=compression.pack(own.ids), labels=compression.pack(own.labels), num_targets=own.num_targets,
        positions=None if own.positions is None else compression.pack(own.positions),
    )  # fmt: skip


def source(num: int = NUM) -> Iterator[tuple[Drawn, int]]:
    return ((_drawn(batch(index)), 3 * index) for index in range(num))


async def evaluation_of(nodes: list[TrainingNode], pool: ChannelPool) -> Evaluation:
    members = Members(RUN, OneSnapshot(nodes), pool, num_blocks=NUM_BLOCKS)
    await members.look()
    return Evaluation(members, SPEC, random.Random(0))


async def test_the_sums_are_those_of_one_process_and_a_death_is_survived() -> None:
    nodes = [TrainingNode(span) for span in (*THIRDS, THIRDS[1])]
    wholes = [whole(NUM_BLOCKS, own.ids, own.labels, own.positions) for own in map(batch, range(NUM))]
    async with running(*nodes) as pool:
        evaluation = await evaluation_of(nodes, pool)
        found = await evaluation.loss(0, source(), 120)
        await nodes[1].stop()
        again = await evaluation.loss(0, source(), 120)
    assert found == again and found.is_whole and found.num_passes == NUM
    assert found.loss_sum == sum(one.loss_sum for one in wholes), "integers: exact"
    assert found.num_targets == sum(batch(index).num_targets for index in range(NUM)) and found.num_bytes == 3 * sum(range(NUM))
    assert not any(node.stage.asked for node in nodes), "an evaluation has no backward"


async def test_a_version_that_moves_on_ends_it() -> None:
    nodes = [TrainingNode(span) for span in THIRDS]

    def step(moment: str) -> None:
        for state in nodes[2].trained.states.values():
            state.restore(1, bytes(32))

    nodes[2].at = step
    async with running(*nodes) as pool:
        with pytest.raises(VersionMismatchError, match="stepped beyond version 0"):
            await (await evaluation_of(nodes, pool)).loss(0, source(), 120)
    assert not any(node.servicer.num_passes for node in nodes)


async def test_what_came_back_in_time_counts_and_the_rest_is_cancelled() -> None:
    nodes, seen = [TrainingNode(span) for span in THIRDS], list[str]()
    is_late = asyncio.Event()

    def slow(moment: str) -> None:
        seen.append(moment)
        if len(seen) > 4:
            loop.call_soon_threadsafe(is_late.set)
            release.wait(60)

    release, loop = threading.Event(), asyncio.get_running_loop()
    nodes[0].at = slow
    async with running(*nodes) as pool:
        found = await (await evaluation_of(nodes, pool)).loss(0, source(), 4.0)
        release.set()
    assert is_late.is_set() and not found.is_whole and 0 < found.num_passes <= 4


async def test_a_model_that_is_not_covered_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.training.evaluation.AGAIN_S", 0.01)
    nodes = [TrainingNode(span) for span in THIRDS[:2]]
    async with running(*nodes) as pool:
        with pytest.raises(NoRouteError, match="do not cover the model"):
            await (await evaluation_of(nodes, pool)).loss(0, source(), 120)


def test_a_row_without_targets_has_no_loss() -> None:
    row = mean_row(7, 0.0, 0, 0, 1.5, {"A": "b"})
    assert row == EvaluationRow(
        evaluation=7, loss=None, perplexity=None, bits_per_byte=None, tokens=0, time_s=1.5, samples={"A": "b"}
    )
