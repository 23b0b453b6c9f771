"""A keeper assembles checkpoints from stages, and gives them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from node.training.checkpoint.contents import TrainedUnit
from node.training.checkpoint.folder import CheckpointFolder
from node.training.checkpoint.keeper import Keeper
from protocols.errors import NoRouteError, VersionMismatchError
from protocols.records import PeerRecord
from protocols.state import StateHeader
from protocols.units import Blocks, Ends
from swarm.training.snapshot import UnitSnapshot
from swarm.training.state_server import StateServer
from tests.node.training.checkpoint.runs import Run, make_run
from tests.swarm.training.givers import RUN, Givers, LyingServer, Stage, givers, wanted


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("base"))
    assert made.model.run == RUN
    return made


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def stages(swarm: Givers, run: Run, version: int, kept: int) -> Mapping[TrainedUnit, Sequence[PeerRecord]]:
    """Two stages that have gone on to `version`: blocks 0:2 with `Ends`, and blocks 1:3 with `Ends`."""
    parts = ((Blocks(0, 1), Blocks(1, 2), Ends()), (Blocks(1, 2), Blocks(2, 3), Ends()))
    sources: dict[TrainedUnit, list[PeerRecord]] = {}
    for units in parts:
        stage = Stage(*(run.snapshot(unit, version) for unit in units))
        for unit in units:
            stage.kept.keep(run.snapshot(unit, kept))
        record = await swarm.start(stage)
        for unit in units:
            sources.setdefault(unit, []).append(record)
    return sources


async def test_a_checkpoint_comes_from_stages_that_have_gone_on_and_restores_them(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    async with givers() as swarm:
        keeper = Keeper(folder, run.model, swarm.pool)
        with pytest.raises(VersionMismatchError, match="there is no checkpoint of prose here yet"):
            await keeper.take(Ends(), None)
        sources = await stages(swarm, run, 43, kept=40)
        path = await keeper.keep(40, run.chains, sources)
        assert path.name == "checkpoint-40"
        for server in swarm.servers:
            await server.stop()

        server = StateServer()  # all stages have died; a newcomer takes its units from the keeper
        record = await swarm.start(Stage(), server)
        server.add(run.model.run, keeper.take)
        own = [run.snapshot(unit, 40) for unit in run.model.units]
        asked = [wanted(one, record, version=None, chain=one.chain) for one in own]
        found = await swarm.get(*asked)
    assert {unit: one.digest for unit, one in found.items()} == {one.unit: one.digest for one in own}
    with pytest.raises(VersionMismatchError, match="is of version 40, not 43"):
        await keeper.take(Ends(), 43)


async def test_a_lie_or_a_lost_unit_leaves_no_checkpoint_and_the_older_one_good(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    run.write(folder, 10)
    async with givers() as swarm:
        sources = await stages(swarm, run, 40, kept=40)
        keeper = Keeper(folder, run.model, swarm.pool)
        assert (await keeper.take(Ends(), None)).version == 10

        def other_chain(answer: object) -> list[object]:
            return [replace(answer, chain=bytes(32)) if isinstance(answer, StateHeader) else answer]

        liar = await swarm.start(Stage(run.snapshot(Ends(), 40)), LyingServer(other_chain))  # type: ignore[arg-type]
        with pytest.raises(NoRouteError, match=r"no peer gave the state of decoder/ends at version 40: .*chain of version 40"):
            await keeper.keep(40, run.chains, {**sources, Ends(): [liar]})
        with pytest.raises(NoRouteError, match="no peer is known that has the state of decoder/2:3 at version 40: 1 unit"):
            await keeper.keep(40, run.chains, {**sources, Blocks(2, 3): []})
        assert names(tmp_path) == ["checkpoint-10"]
        assert (await keeper.take(Ends(), None)).version == 10
        await keeper.keep(40, run.chains, {**sources, Ends(): [liar, *sources[Ends()]]})
        assert (await keeper.take(Ends(), None)).version == 40, "the next source was asked"


async def test_units_of_this_process_are_not_downloaded_unless_they_are_of_another_state(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    here = {unit: Stage(run.snapshot(unit, 40)) for unit in (Blocks(0, 1), Ends())}
    own = {unit: stage.kept.take for unit, stage in here.items()}
    async with givers() as swarm:
        sources = {unit: () if unit in own else found for unit, found in (await stages(swarm, run, 40, kept=40)).items()}
        keeper = Keeper(folder, run.model, swarm.pool)
        await keeper.keep(40, run.chains, sources, own)
        assert [(await keeper.take(unit, 40)).digest for unit in own] == [run.snapshot(unit, 40).digest for unit in own]
        with pytest.raises(
            NoRouteError, match=r"no peer gave the state of decoder/0:1 at version 40: no peer is known to have it"
        ):
            await keeper.keep(40, {**run.chains, Blocks(0, 1): bytes(32)}, sources, own)
        with pytest.raises(NoRouteError, match="at version 43: no peer is known"):
            await keeper.keep(43, run.chains, sources, own)
    assert names(tmp_path) == ["checkpoint-40"]


async def test_moments_of_a_form_that_the_model_does_not_have_are_refused(run: Run, tmp_path: Path) -> None:
    honest = run.snapshot(Ends(), 40)
    odd = UnitSnapshot.of(
        unit=Ends(), version=40, chain=honest.chain, tensors={**honest.tensors, "mean/other": honest.data.float()}
    )
    async with givers() as swarm:
        sources = {**await stages(swarm, run, 40, kept=40), Ends(): [await swarm.start(Stage(odd))]}
        with pytest.raises(NoRouteError, match=r"'mean/other' .* is no moment of a parameter here"):
            await Keeper(CheckpointFolder(tmp_path), run.model, swarm.pool).keep(40, run.chains, sources)
    assert names(tmp_path) == []
