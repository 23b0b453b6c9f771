"""`swarm runs`: the training runs of a swarm and their progress."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from node.cli.flags.asking import find_config
from node.cli.terminal import as_json
from node.cli.terminal.console import remark
from node.cli.terminal.waiting import shown
from protocols.words import one_line
from swarm import waiting
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entered
from swarm.waiting import OnWait, Wait

if TYPE_CHECKING:
    from rich.table import Table

    from node.runs.overview import RunOverview

PIPE_COLUMNS = 200
MEASURING = Wait(kind="measuring", text="asking the runs, twice, for their speed")
BAR = 20
"""Letters of a bar."""


def run(into: Entered, *, is_json: bool, data_dir: Path | None, lan: bool) -> None:
    """Print what the swarm says now. PeerUnreachableError if none of the peers answers in time."""
    find = find_config(into.swarm, lan, data_dir, into.entry.key)
    find.check(into.peers)
    with shown() as on_wait:
        found = asyncio.run(_ask(into, find, on_wait))
    if is_json:
        runs = [{**asdict(one), "share": one.share} for one in found]
        as_json.show({"swarm": into.swarm, "runs": runs})
    elif found:
        _show(found)
    else:
        remark(f"no run is under way in swarm {into.swarm!r}; begin one: swarm node --run RUN.toml, and swarm train RUN.toml")


async def _ask(into: Entered, find: FindConfig, on_wait: OnWait) -> list[RunOverview]:
    on_wait(waiting.JOINING)
    from node.runs import overview
    from swarm.peer.thin_peer import ThinPeer

    async with ThinPeer(into.peers, into.swarm, find, into.entry) as peer:
        on_wait(MEASURING)
        return await overview.look(peer)


def _show(found: list[RunOverview]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_COLUMNS)
    console.print(table(found))


def table(found: list[RunOverview]) -> Table:
    """A line for each run."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    made.add_column("run")
    made.add_column("progress", no_wrap=True)
    for name in ("version", "stages", "trainers", "served", "loss", "tokens/s"):
        made.add_column(name, justify="right", no_wrap=True)
    for one in found:
        speed = "–" if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}"
        made.add_row(
            one_line(f"{one.name}@{one.digest[:12]}"), _bar(one.share), _of(one.version, one.steps), str(one.stages),
            str(one.trainers), "–" if one.served is None else str(one.served), "–" if one.loss is None else f"{one.loss:.4g}", speed,
        )  # fmt: skip
    return made


def _bar(share: float | None) -> str:
    if share is None:
        return "–"
    full = round(share * BAR)
    return f"{'█' * full}{'░' * (BAR - full)} {100 * share:.0f} %"


def _of(version: int | None, steps: int | None) -> str:
    return "no stage answers" if version is None else str(version) if steps is None else f"{version} of {steps}"
