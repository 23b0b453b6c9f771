"""Which versions are published, and how often at most."""

from __future__ import annotations

from dataclasses import replace

from node.runs.trainer.publisher import Publisher
from protocols.ids import ModelId
from protocols.runs import BatchRule, DataRule, RunSpec
from swarm.clock import Clock
from swarm.training.coordinator import Step
from swarm.training.members import Members

SPEC = RunSpec(
    name="tiny",
    data=DataRule(sequence_tokens=16),
    batch=BatchRule(steps=7, batch_tokens=64, micro_batch_sequences=4),
    serve_every=2,
)


def test_every_second_version_and_the_last_are_published() -> None:
    assert [version for version in range(1, 8) if SPEC.is_served(version)] == [2, 4, 6, 7]
    assert not any(replace(SPEC, serve_every=0).is_served(version) for version in range(1, 8))


async def test_a_fast_run_publishes_no_more_often_than_sessions_can_follow_but_always_its_last_version() -> None:
    now_s = 100.0
    members = Members(ModelId("tiny", "0" * 64), None, None)  # type: ignore[arg-type]  # no stage was looked for, so none is told
    publisher = Publisher(SPEC, members, None, Clock(now_s=lambda: now_s), every_s=5.0)  # type: ignore[arg-type]
    assert publisher.is_due(2) and not publisher.is_due(3)
    await publisher.after(Step(version=2, chains={}, finished=None))  # type: ignore[arg-type]
    now_s += 4.9
    assert not publisher.is_due(4) and publisher.is_due(7)
    now_s += 0.2
    assert publisher.is_due(6)
