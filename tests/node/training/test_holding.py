"""Versions in stages' memory: which, when, how many bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from node.runs.stage import holding
from protocols.errors import BadRequestError, OverloadedError, PeerUnreachableError, VersionMismatchError
from protocols.held import Hold
from protocols.ids import PeerId, Span
from protocols.kept import Kept
from protocols.units import Unit
from swarm.clock import SYSTEM, Clock
from swarm.directory.snapshot import Snapshot
from swarm.training.members import Holder
from swarm.training.snapshot import UnitSnapshot
from tests.node.training.exact_stage import ALL_UNITS, NUM_BLOCKS, RUN, ExactStage, bits, forms, spec_of
from tests.node.training.processes.exact_swarm import SPANS, draw
from tests.node.training.run_nodes import Folder, RunNode, RunTrainer
from tests.node.training.toy_run import new_identity

ALL = Span(0, NUM_BLOCKS)
TRAINER, OTHER = new_identity().peer_id, new_identity().peer_id


@contextlib.asynccontextmanager
async def stages(path: Path, *spans: Span, clock: Clock = SYSTEM) -> AsyncIterator[list[RunNode]]:
    directory = Folder(path)
    nodes = [
        RunNode(RUN, spec_of(9), ExactStage(span, NUM_BLOCKS), NUM_BLOCKS, directory, forms=forms, clock=clock) for span in spans
    ]
    try:
        for node in nodes:
            await node.start()
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


@contextlib.asynccontextmanager
async def stage(path: Path, span: Span = ALL) -> AsyncIterator[RunNode]:
    async with stages(path, span) as (node,):
        yield node


def step(*nodes: RunNode) -> Kept:
    """To the next version, with gradients of 0; units that none of them has get some chain."""
    for node in nodes:
        node.units.step_alone(1)
    own = {unit: state.chain for node in nodes for unit, state in node.units.states.items()}
    return Kept(version=nodes[0].units.version, chains=dict.fromkeys(ALL_UNITS, bytes(32)) | own)


async def tell(nodes: Sequence[RunNode], kept: Kept, caller: PeerId = TRAINER) -> None:
    """Have them hold it."""
    for node in nodes:
        assert await node.holding.hold(Hold(run=RUN, kept=kept), caller) == kept.version


async def hold(nodes: Sequence[RunNode], kept: Kept) -> None:
    """Have them hold it, until nothing else is held."""
    await tell(nodes, kept)
    await until(lambda: all(versions(node) == [kept.version] and node.holding.held[0].is_done for node in nodes))


def versions(node: RunNode) -> list[int]:
    return [one.version for one in node.holding.held]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_what_is_held_stays_as_it_was_while_the_units_step(tmp_path: Path) -> None:
    async with stage(tmp_path) as node:
        first = step(node)
        expected = {unit: bits(node.units.snapshot(unit)) for unit in ALL_UNITS}
        await hold([node], first)
        step(node)
        assert {unit: bits(await node.take(unit, 1)) for unit in ALL_UNITS} == expected
        assert bits(await node.take(ALL_UNITS[0], None)) != expected[ALL_UNITS[0]]
        [held] = node.holding.held
        assert (held.version, held.whole, dict(held.chains)) == (1, first.chain, dict(first.chains))


async def test_a_stage_holds_the_newest_version_and_none_after_one_that_the_run_goes_back_to(tmp_path: Path) -> None:
    now_s = [0.0]
    async with stages(tmp_path, ALL, clock=Clock(now_s=lambda: now_s[0])) as (node,):
        for _ in range(2):
            await hold([node], step(node))
        node.holding.go_back(2)
        assert versions(node) == [2]
        node.holding.go_back(1)
        assert versions(node) == []


async def test_a_version_of_another_history_takes_the_place_of_the_one_with_its_number(tmp_path: Path) -> None:
    now_s = [0.0]
    async with stages(tmp_path, ALL, clock=Clock(now_s=lambda: now_s[0])) as (node,):
        await hold([node], step(node))
        for state in node.units.states.values():
            state.restore(1, b"another history".ljust(32))
        new = Kept(version=1, chains={unit: state.chain for unit, state in node.units.states.items()})
        await hold([node], new)
        assert [one.whole for one in node.holding.held] == [new.chain]


async def test_a_call_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    async with stage(tmp_path) as node:
        kept = step(node)
        await hold([node], kept)
        with pytest.raises(VersionMismatchError, match="version 9"):
            await tell([node], replace(kept, version=9))
        with pytest.raises(BadRequestError, match="chain"):
            await tell([node], replace(kept, chains=dict.fromkeys(kept.chains, bytes(32))))
        with pytest.raises(BadRequestError, match="1 unit, not those of the model"):
            await tell([node], replace(kept, chains={ALL_UNITS[0]: kept.chains[ALL_UNITS[0]]}))
        assert versions(node) == [1]


async def test_a_peer_with_wrong_chains_takes_no_copy_away_and_has_to_wait_and_others_have_not(tmp_path: Path) -> None:
    now_s = [0.0]
    async with stages(tmp_path, *(Span(*span) for span in SPANS), clock=Clock(now_s=lambda: now_s[0])) as nodes:
        first, other = nodes
        await hold(nodes, step(first, other))
        second = step(first, other)
        unit = next(iter(other.units.states))
        await tell([first], replace(second, chains={**second.chains, unit: b"wrong".ljust(32)}), OTHER)
        assert versions(first) == [1, 2]
        with pytest.raises(OverloadedError, match="version 2"):
            await tell([first], second)
        now_s[0] += 10.0
        await until(lambda: versions(first) == [1])
        with pytest.raises(OverloadedError, match=r"60.0 s"):
            await tell([first], second, OTHER)
        await hold(nodes, second)
        assert first.holding.held[0].chains.keys() == set(ALL_UNITS)


async def test_many_calls_at_once_copy_the_own_units_once(tmp_path: Path) -> None:
    async with stage(tmp_path, Span(0, 2)) as node:
        kept, taken, other = step(node), [], next(unit for unit in ALL_UNITS if unit not in node.units.states)
        take = node.holding._take_own

        async def counted(unit: Unit, version: int | None) -> UnitSnapshot:
            taken.append(unit)
            return await take(unit, version)

        node.holding._take_own = counted
        calls = [
            node.holding.hold(Hold(run=RUN, kept=replace(kept, chains={**kept.chains, other: bytes([number]) * 32})), OTHER)
            for number in range(8)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[0] == 1 and all(isinstance(one, OverloadedError) for one in answers[1:])
        assert sorted(taken) == sorted(node.units.states)


@pytest.mark.parametrize(("times", "holds_own", "has_memory"), [(1.9, False, False), (2.1, True, False), (4.1, True, True)])
async def test_what_a_stage_holds_leaves_as_much_memory_free(
    times: float, holds_own: bool, has_memory: bool, tmp_path: Path
) -> None:
    async with stage(tmp_path, Span(0, 2)) as node:
        own = sum(node.units.form(unit).num_bytes for unit in node.units.states)
        node.holding._free_bytes = lambda: int(times * own)
        kept = step(node)
        if holds_own:
            await tell([node], kept)
        else:
            for _ in range(2):
                with pytest.raises(OverloadedError, match="memory"):
                    await tell([node], kept)
            assert [str(event.kind) for event in node.events] == ["copies"], "it is said once"
        assert bool(versions(node)) is holds_own and node.holding.has_memory is has_memory


async def test_versions_are_held_when_it_is_time_and_the_older_one_goes_when_the_newer_is_whole(tmp_path: Path) -> None:
    now_s = [0.0]
    clock, directory = Clock(now_s=lambda: now_s[0]), Folder(tmp_path)
    nodes = [
        RunNode(RUN, spec_of(20), ExactStage(Span(*span), NUM_BLOCKS), NUM_BLOCKS, directory, forms=forms, clock=clock)
        for span in SPANS
    ]
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
        await until(lambda: all(versions(node) == [6] and node.holding.held[0].is_done for node in nodes))
    finally:
        await trainer.close()
        for node in nodes:
            await node.stop()


async def test_a_stage_that_hears_nobody_drops_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has lost the swarm for a moment: that the others have the newer version together is not refuted."""
    now_s, is_deaf, num_deaf = [0.0], False, 0
    async with stages(tmp_path, *(Span(*span) for span in SPANS), clock=Clock(now_s=lambda: now_s[0])) as nodes:
        first, other = nodes
        await hold(nodes, step(first, other))
        look = first.members.look_at_all

        async def be_deaf(*_: object) -> list[Unit]:
            nonlocal is_deaf
            is_deaf = True
            return []

        async def look_if_not_deaf() -> list[Holder]:
            nonlocal num_deaf
            num_deaf += is_deaf
            return [] if is_deaf else await look()

        monkeypatch.setattr(holding, "LOOK_S", 0.01)
        monkeypatch.setattr(first.holding._copies, "fetch", be_deaf)
        monkeypatch.setattr(first.members, "look_at_all", look_if_not_deaf)
        now_s[0] += 60.0
        second = step(first, other)
        await tell(nodes, second)
        await until(lambda: num_deaf >= 3)
        assert versions(first) == [1, 2]
        is_deaf = False
        await until(lambda: all(versions(node) == [2] for node in nodes))


async def test_a_stage_does_not_begin_before_it_could_ask_for_others(tmp_path: Path) -> None:
    """Its p2pd is being started again, say: at its old version it would take part in nothing, and others would find it."""
    async with stages(tmp_path, ALL) as (ahead,):
        step(ahead)
        folder = SilentFolder(tmp_path)
        late = RunNode(RUN, spec_of(9), ExactStage(ALL, NUM_BLOCKS), NUM_BLOCKS, folder, forms=forms)
        try:
            starting = asyncio.create_task(late.start())
            await until(lambda: any("not known yet: no answer" in event.text for event in late.events))
            assert not starting.done()
            folder.is_silent.clear()
            await starting
            assert late.units.version == 1
        finally:
            await late.stop()


class SilentFolder(Folder):
    """It cannot be asked as long as `is_silent` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        object.__setattr__(self, "is_silent", asyncio.Event())
        self.is_silent.set()

    is_silent: asyncio.Event

    async def snapshot(self, model: str) -> Snapshot:
        if self.is_silent.is_set():
            raise PeerUnreachableError("no answer")
        return await super().snapshot(model)
