"""`swarm doctor`: is this machine ready, and if not, what to do."""

from __future__ import annotations

import asyncio
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from node.cli.flags.asking import find_config
from node.cli.terminal import as_json
from node.cli.terminal.waiting import shown
from node.config import parse_address
from node.doctor.check import Check, Verdict, is_healthy
from protocols.words import counted, one_line
from swarm import places
from swarm.waiting import OnWait, Wait

if TYPE_CHECKING:
    from node.cli.flags.command_options import DoctorOptions
    from node.doctor import network

STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
NAME = 11
"""Letters of the column of names."""
PIPE_COLUMNS = 200


def run(flags: DoctorOptions, *, is_json: bool) -> int:
    """Print what was found; the exit code: 0, or 1 if a check has failed."""
    with shown() as on_wait:
        checks = _checks(flags, on_wait)
    if is_json:
        as_json.show({"is_healthy": is_healthy(checks), "checks": [asdict(one) for one in checks]})
    else:
        show(checks)
    return 0 if is_healthy(checks) else 1


def _checks(flags: DoctorOptions, on_wait: OnWait) -> list[Check]:
    """Neighbours take 3 s to be heard, and torch takes as long to be loaded: at the same time."""
    from node.doctor import network

    into, place = flags.enter(), _place(flags)
    find = find_config(into.swarm, flags.lan, flags.data_dir, into.entry.key)
    heard = network.listen(find)
    found = _machine(flags, on_wait)
    on_wait(Wait(kind="checking", text="listening for neighbours"))
    found.append(heard.result())
    on_wait(Wait(kind="checking", text="asking peers, and being dialled by them"))
    return found + asyncio.run(network.look(into, find, place))


def _machine(flags: DoctorOptions, on_wait: OnWait) -> list[Check]:
    from node.doctor import machine

    data_dir = flags.data_dir or places.data_dir()
    on_wait(Wait(kind="checking", text="checking this machine"))
    return [
        machine.python(), machine.packages(), machine.extras(), *machine.device(flags.device), machine.memory(),
        machine.disk(data_dir), machine.files(), machine.listen(*parse_address(flags.listen, "--listen")), machine.proxies(),
    ]  # fmt: skip


def _place(flags: DoctorOptions) -> network.Place:
    from node.doctor import network

    announce = None if flags.announce is None else parse_address(flags.announce, "--announce")
    listen = parse_address(flags.listen, "--listen")
    return network.Place(
        listen=listen, announce=announce, is_given=announce is not None or flags.listen != type(flags).listen
    )  # fmt: skip


def show(checks: Sequence[Check]) -> None:
    """Print the checks, coloured on a terminal, and how many have failed."""
    is_terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=True)
    for one in checks:
        first, *rest = lines(one, shutil.get_terminal_size().columns if is_terminal else PIPE_COLUMNS)
        console.print(Text.assemble((first[: len(one.verdict)], STYLES[one.verdict]), first[len(one.verdict) :]))
        for line in rest:
            console.print(Text(line))
    counts = Counter(one.verdict for one in checks)
    rest_of = ", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES if counts[verdict])
    print(f"{counted(len(checks), 'check')}: {rest_of}", flush=True)


def lines(one: Check, columns: int) -> Iterator[str]:
    """A check in lines of at most `columns` letters: verdict, name and what was found; below it what to do."""
    start = f"{one.verdict:<8} {one.name:<{NAME}} "
    texts = [(start, one.found)] + ([(" " * len(start) + "fix: ", one.fix)] if one.fix else [])
    for begin, text in texts:
        indent = " " * len(start)
        yield from textwrap.wrap(
            one_line(text), max(columns, 40), initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False,
        )  # fmt: skip
