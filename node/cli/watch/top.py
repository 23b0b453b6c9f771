"""`swarm top`: nodes, blocks, load, runs and events, live."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from node.cli.flags.asking import find_config
from node.cli.terminal import as_json, keys, status_line
from node.cli.terminal.waiting import shown
from node.cli.watch import top_view
from node.watching import run_losses
from swarm import waiting
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entered
from swarm.suggestion import NodeCommand
from swarm.waiting import OnWait

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from node.watching.journals import Journals
    from node.watching.watcher import Source, Watcher

DRAW_S = 0.25
"""Between two drawings."""

HEAR_S = 2.0
"""Between two questions to trainers for what is new."""

ONCE_S = 4.0
"""With --once: longest wait for the answers of all nodes."""

PIPE_COLUMNS, PIPE_ROWS = 200, 10_000


def run(
    models: Sequence[str], into: Entered, *, is_once: bool, is_json: bool = False, data_dir: Path | None, lan: bool = True
) -> None:
    """Draw until `q` or Ctrl-C; once, plainly, if stdout is no terminal. PeerUnreachableError if no peer answers at the start.

    is_json: print it once, for programs.
    """
    find = find_config(into.swarm, lan, data_dir, into.entry.key)
    find.check(into.peers)
    hosting = NodeCommand(swarm=into.swarm, peer=next(iter(into.peers), ""), data_dir=data_dir)
    is_live = not (is_once or is_json) and sys.stdout.isatty() and status_line.is_usable()
    with shown() as on_wait:
        asyncio.run(_watch(models, into, find, hosting, on_wait, is_live, is_json))


async def _watch(
    models: Sequence[str], into: Entered, find: FindConfig, hosting: NodeCommand, on_wait: OnWait, is_live: bool, is_json: bool
) -> None:
    on_wait(waiting.JOINING)
    from node.watching.journals import Journals
    from node.watching.watcher import Watcher
    from swarm.peer.thin_peer import ThinPeer

    async with ThinPeer(into.peers, into.swarm, find, into.entry) as peer:
        watcher = Watcher(lambda: contextlib.nullcontext(peer), models)
        watching = asyncio.create_task(watcher.run())
        try:
            with watcher.visitors.watching():
                await _all_asked(watcher, ONCE_S)
                screen = Screen(watcher, Journals(), into.swarm, hosting)
                await screen.hear(peer)
                on_wait(None)
                if is_live:
                    await _draw(screen, peer, watching)
                elif is_json:
                    as_json.show({"swarm": into.swarm, **screen.facts()})
                else:
                    _print(screen)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def _all_asked(watcher: Watcher, within_s: float) -> None:
    """Until each node has answered or counts as silent, for a short time at most."""
    for _ in range(round(within_s / DRAW_S)):
        look = watcher.look
        if not look.problem and not look.records.keys() - look.trips_ms.keys() - look.silent:
            return
        await asyncio.sleep(DRAW_S)


@dataclass(frozen=True, slots=True)
class Screen:
    """What is shown: nodes, as the watcher sees them, and the losses that trainers tell of."""

    watcher: Watcher
    journals: Journals
    swarm: str
    hosting: NodeCommand

    async def hear(self, source: Source) -> None:
        """Ask trainers for what is new; at once if there are none."""
        await self.journals.look(source.pool, self.watcher.look.records.values())

    async def keep_hearing(self, source: Source) -> NoReturn:
        while True:
            await asyncio.sleep(HEAR_S)
            await self.hear(source)

    def lines(self, columns: int, rows: int) -> list[Text]:
        look, changes = self.watcher.look, self.watcher.changes
        return top_view.screen(self.swarm, look, changes, self.hosting, columns, rows, histories=self.journals.histories)

    def facts(self) -> dict[str, object]:
        """The same for programs."""
        look = self.watcher.look
        return {
            "at_unix_s": look.at_s,
            "problem": look.problem or None,
            "models": [asdict(rows) for rows in look.models],
            "runs": [asdict(row) for row in run_losses.rows(look, self.journals.histories)],
            "round_trips_ms": look.trips_ms,
            "silent": sorted(look.silent),
        }


def _print(screen: Screen) -> None:
    for line in screen.lines(*_plain_size()):
        print(line.plain.rstrip())
    sys.stdout.flush()


def _plain_size() -> tuple[int, int]:
    return (status_line.width(), PIPE_ROWS) if sys.stdout.isatty() else (PIPE_COLUMNS, PIPE_ROWS)


async def _draw(screen: Screen, source: Source, watching: asyncio.Task[None]) -> None:
    """On a screen of its own, until `q`; what the terminal showed before comes back."""
    from rich.console import Console
    from rich.live import Live

    is_over = asyncio.Event()

    def on_key(key: str) -> None:
        if key in "qQ":
            is_over.set()

    hearing = asyncio.create_task(screen.keep_hearing(source))
    try:
        with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as live, keys.typed(on_key):
            while not is_over.is_set() and not watching.done() and not hearing.done():
                _show(live, screen)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(DRAW_S):
                        await is_over.wait()
    finally:
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
    for task in (watching, hearing):
        if task.done() and not task.cancelled():
            task.result()


def _show(live: Live, screen: Screen) -> None:
    from rich.console import Group
    from rich.text import Text

    columns, rows = live.console.size
    lines = screen.lines(columns, rows - 1)
    lines += [Text()] * (rows - 1 - len(lines))
    live.update(Group(*lines, Text("q leaves", "dim")), refresh=True)
