"""What all visitors of one page share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from starlette.datastructures import Headers

from node.dashboard.estimates import Estimates
from node.dashboard.operating import Operating
from node.dashboard.talk import Talk
from node.watching.run_watcher import RunWatcher
from node.watching.watcher import Watcher
from swarm.suggestion import USUAL, NodeCommand
from swarm.tasks import Tasks


@dataclass(slots=True, kw_only=True)
class Dashboard:
    """One swarm, and who may look at it. Belongs to one event loop."""

    watcher: Watcher
    swarm: str
    hosting: NodeCommand = USUAL
    """What is suggested where blocks are missing."""

    check_key: Callable[[Headers], bool] = lambda headers: True
    """Whether a request with these headers may be answered."""

    talk: Talk | None = None
    """Who answers the chat; None = nothing here does."""

    operating: Operating | None = None
    """Who gives the orders of its buttons; None = the page is read-only."""

    may_read_directories: Callable[[], bool] = lambda: False
    """May a visitor name a directory of this machine? Only where visitors are its own users."""

    runs_folder: Path | None = None
    """Where trainers of this machine write what they measure: a folder for each run."""

    estimates: Estimates = field(init=False)
    runs: RunWatcher = field(init=False)
    tasks: Tasks = field(default_factory=Tasks)
    _is_begun: bool = False

    def __post_init__(self) -> None:
        self.estimates = Estimates(self.watcher)
        self.runs = RunWatcher(self.watcher, self.runs_folder)

    def begin(self) -> None:
        """Begin to watch the swarm; again: does nothing."""
        if not self._is_begun:
            self._is_begun = True
            self.tasks.keep(self.watcher.run(), "watching the swarm")
            self.tasks.keep(self.runs.run(), "watching its training runs")
            if self.operating is not None:
                self.tasks.keep(self.operating.run(), "asking what may be ordered")

    async def close(self) -> None:
        """Watch no more."""
        await self.tasks.stop()
        if self.operating is not None:
            await self.operating.close()
