"""Versions in stages' memory: which, when, how many bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocols.errors import BadRequestError, OverloadedError, VersionMismatchError
from protocols.held import Hold
from protocols.ids import Span
from protocols.kept import Kept
from swarm.clock import Clock
from tests.node.training.exact_stage import ALL_UNITS, NUM_BLOCKS, RUN, ExactStage, bits, forms, spec_of
from tests.node.training.processes.exact_swarm import SPANS, draw
from tests.node.training.run_nodes import Folder, RunNode, RunTrainer

ALL = Span(0, NUM_BLOCKS)


@contextlib.asynccontextmanager
async def stage(path: Path, span: Span = ALL) -> AsyncIterator[RunNode]:
    node = RunNode(RUN, spec_of(9), ExactStage(span, NUM_BLOCKS), NUM_BLOCKS, Folder(path), forms=forms)
    try:
        yield node
    finally:
        await node.holding.stop()
        await node.pool.close()


def step(node: RunNode) -> Kept:
    """To the next version, with gradients of 0."""
    node.units.step_alone(1)
    return Kept(version=node.units.version, chains={unit: state.chain for unit, state in node.units.states.items()})


def hold(kept: Kept, whole: int = 0) -> Hold:
    return Hold(run=RUN, kept=kept, whole=whole)


def versions(node: RunNode) -> list[int]:
    return [one.version for one in node.holding.held]


async def test_what_is_held_stays_as_it_was_while_the_units_step(tmp_path: Path) -> None:
    async with stage(tmp_path) as node:
        first = step(node)
        expected = {unit: bits(node.units.snapshot(unit)) for unit in ALL_UNITS}
        assert await node.holding.hold(hold(first)) == 1
        step(node)
        assert {unit: bits(await node.take(unit, 1)) for unit in ALL_UNITS} == expected
        assert bits(await node.take(ALL_UNITS[0], None)) != expected[ALL_UNITS[0]]
        [held] = node.holding.held
        assert (held.version, held.whole, dict(held.chains)) == (1, first.chain, dict(first.chains))


async def test_a_stage_holds_the_version_that_is_whole_and_the_newest_and_none_after_one_that_the_run_goes_back_to(
    tmp_path: Path,
) -> None:
    async with stage(tmp_path) as node:
        await node.holding.hold(hold(step(node)))
        await node.holding.hold(hold(step(node), whole=1))
        assert versions(node) == [1, 2]
        third = step(node)
        await node.holding.hold(hold(third, whole=1))
        assert versions(node) == [1, 3]
        node.holding.go_back(1)
        assert versions(node) == [1]
        await node.holding.hold(hold(third))
        await node.holding.hold(hold(third, whole=3))
        assert versions(node) == [3]


async def test_a_version_of_another_history_takes_the_place_of_the_one_with_its_number(tmp_path: Path) -> None:
    async with stage(tmp_path) as node:
        old = step(node)
        await node.holding.hold(hold(old))
        for state in node.units.states.values():
            state.restore(1, b"another history".ljust(32))
        new = Kept(version=1, chains={unit: state.chain for unit, state in node.units.states.items()})
        await node.holding.hold(hold(new))
        assert [one.whole for one in node.holding.held] == [new.chain]


async def test_a_version_that_is_not_here_is_not_held(tmp_path: Path) -> None:
    async with stage(tmp_path) as node:
        kept = step(node)
        with pytest.raises(VersionMismatchError, match="version 2"):
            await node.holding.hold(hold(replace(kept, version=2)))
        with pytest.raises(BadRequestError, match="chain"):
            await node.holding.hold(hold(replace(kept, chains=dict.fromkeys(kept.chains, bytes(32)))))
        assert versions(node) == []


@pytest.mark.parametrize(("times", "holds_own", "has_memory"), [(1.9, False, False), (2.1, True, False), (4.1, True, True)])
async def test_what_a_stage_holds_leaves_as_much_memory_free(
    times: float, holds_own: bool, has_memory: bool, tmp_path: Path
) -> None:
    async with stage(tmp_path, Span(0, 2)) as node:
        own = sum(node.units.form(unit).num_bytes for unit in node.units.states)
        node.holding._free_bytes = lambda: int(times * own)
        kept = step(node)
        if holds_own:
            await node.holding.hold(hold(kept))
        else:
            for _ in range(2):
                with pytest.raises(OverloadedError, match="memory"):
                    await node.holding.hold(hold(kept))
            assert [str(event.kind) for event in node.events] == ["copies"], "it is said once"
        assert bool(versions(node)) is holds_own and node.holding.has_memory is has_memory


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_versions_are_held_when_it_is_time_and_the_older_one_goes_when_the_newer_is_whole(tmp_path: Path) -> None:
    now_s = [0.0]
    clock, directory = Clock(now_s=lambda: now_s[0]), Folder(tmp_path)
    nodes = [RunNode(RUN, spec_of(20), ExactStage(Span(*span), NUM_BLOCKS), NUM_BLOCKS, directory, forms=forms) for span in SPANS]
    trainer = RunTrainer(RUN, spec_of(20), NUM_BLOCKS, directory, draw, clock)
    try:
        for node in nodes:
            await node.start()
        await trainer.start()
        await trainer.train(2)
        assert versions(nodes[0]) == [] == versions(nodes[1])
        now_s[0] += 10.0
        await trainer.train(3)
        await until(lambda: all(one.is_done for node in nodes for one in node.holding.held))
        assert all(versions(node) == [3] and node.holding.held[0].chains.keys() == set(ALL_UNITS) for node in nodes)
        now_s[0] += 2.0
        await trainer.train(5)
        assert all(versions(node) == [3] for node in nodes), "copying took 2 s, so it is not time for another 18 s"
        now_s[0] += 18.0
        await trainer.train(6)
        await until(lambda: all(versions(node) == [3, 6] and node.holding.held[1].is_done for node in nodes))
        await trainer.train(7)
        assert all(versions(node) == [6] for node in nodes)
    finally:
        await trainer.close()
        for node in nodes:
            await node.stop()
