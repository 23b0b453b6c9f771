"""Watches a swarm's training runs while a visitor looks at them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from node.training.report.history import History
from node.watching import runs
from node.watching.journals import Journals
from node.watching.runs import RunView
from node.watching.visitors import Visitors
from node.watching.watcher import Watcher
from protocols.errors import SwarmError
from protocols.words import one_line

VIEWS_S = 2.0
"""Between two looks at stages, beside the 3 s that one takes."""

JOURNALS_S = 1.0
"""Between two questions to the trainers for what is new."""


class RunWatcher:
    """All runs of the swarm that `watcher` watches. `run` watches until cancelled; all methods belong to one event loop."""

    def __init__(self, watcher: Watcher, folder: Path | None = None) -> None:
        """folder: where trainers of this machine write what they measure, a folder for each run."""
        self._watcher, self._folder = watcher, folder
        self.views: list[RunView] = []
        self.problem = ""
        """Why there are no views, or no newer ones; one line."""
        self.has_looked = False
        self._journals = Journals()
        self._here: list[History] = []
        self.visitors = Visitors()

    def history(self, name: str, digest: str) -> History | None:
        """Of one run: what a trainer wrote on this machine, or what trainers tell, if that goes farther; None if there is nothing."""
        here = [one for one in self._here if one.name == name]
        told = [one for run, one in self._journals.histories.items() if (run.name, run.digest) == (name, digest)]
        return max((*here, *told), key=_newest, default=None)

    @property
    def known(self) -> list[tuple[str, str]]:
        """Names and digests of all runs of which something is known; those of which only files are here have no digest."""
        seen = {(one.overview.name, one.overview.digest) for one in self.views}
        seen |= {(run.name, run.digest) for run in self._journals.histories}
        named = {name for name, _ in seen}
        return sorted(seen | {(one.name, "") for one in self._here if one.name not in named})

    async def run(self) -> None:
        """Look again and again, while a visitor watches."""
        await asyncio.gather(self._keep_views(), self._keep_journals())

    async def _keep_views(self) -> None:
        while True:
            await self.visitors.here.wait()
            if self._watcher.source is not None:
                try:
                    self.views, self.problem = await runs.look_at_runs(self._watcher.source, self._watcher.look), ""
                except SwarmError as error:
                    self.problem = one_line(str(error))
                self.has_looked = True
            await asyncio.sleep(VIEWS_S)

    async def _keep_journals(self) -> None:
        while True:
            await self.visitors.here.wait()
            if self._folder is not None:
                self._here = await asyncio.to_thread(runs.histories, self._folder)
            if self._watcher.source is not None:
                with suppress(SwarmError):  # the views say why
                    await self._journals.look(self._watcher.source.pool, self._watcher.look.records.values())
            await asyncio.sleep(JOURNALS_S)


def _newest(history: History) -> int:
    return int(history.versions[-1]["version"]) if history.versions else 0
