"""Runs are watched while a visitor is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from node.runs.trainer.notes import Notes
from node.training.metrics import MetricsFile
from node.training.report.history import History
from node.watching.journals import Followed, merged
from node.watching.run_watcher import RunWatcher
from node.watching.watcher import Watcher
from protocols.journal import JournalPart
from tests.node.dashboard.made_swarm import MadeSource
from tests.node.runs.test_notes import RUN, version
from tests.protocols.samples import ALICE


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_files_of_this_machine_are_read_only_while_somebody_looks(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / RUN.name) as file:
        for number in range(1, 4):
            file.write(version(number))
    watched = RunWatcher(Watcher(MadeSource([]).met), tmp_path)
    running = asyncio.create_task(watched.run())
    try:
        await asyncio.sleep(0.05)
        assert watched.known == [] and watched.history(RUN.name, "") is None
        with watched.visitors.watching():
            await until(lambda: watched.known)
        assert watched.known == [(RUN.name, "")]
        found = watched.history(RUN.name, "")
        assert found is not None and [note["version"] for note in found.versions] == [1, 2, 3]
        told = _told(5)
        watched._journals.histories[RUN] = told
        assert watched.known == [(RUN.name, RUN.digest)]
        assert watched.history(RUN.name, RUN.digest) is told, "it goes farther"
        watched._journals.histories[RUN] = _told(2)
        assert watched.history(RUN.name, RUN.digest) is found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _told(newest: int) -> History:
    notes, followed = Notes(), Followed()
    for number in range(1, newest + 1):
        notes.add(version(number))
    found, last = notes.after(0)
    followed.take(JournalPart(journal=notes.id, last=last, newest=last, notes=tuple(found)))
    history = merged(RUN.name, {ALICE.peer_id: followed})
    assert history is not None
    return history
