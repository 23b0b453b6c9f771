"""What `swarm status` prints for people.

A table, or a few short lines per node on a narrow terminal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from node.watching import abouts, run_rows
from node.watching.model_rows import ModelRows, PeerRow
from node.watching.verdict import verdict
from protocols.ids import PeerId, short_peer
from protocols.words import counted, one_line
from swarm.suggestion import NodeCommand

TABLE_COLUMNS = 80
"""On narrower terminals the columns of a table would be a few letters wide."""

PIPE_COLUMNS = 200
"""Where the output goes to a file or a program, and COLUMNS says nothing else."""


def show(models: Sequence[ModelRows], hosting: NodeCommand) -> None:
    """Print every model. hosting: what is suggested if blocks are missing."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console = Console(highlight=False, width=PIPE_COLUMNS)
    for rows in models:
        if console.width < TABLE_COLUMNS:
            for line in lines(rows):
                console.print(one_line(line), markup=False)
        else:
            console.print(table(rows))
        for line in machines(rows):
            console.print(one_line(line), markup=False, soft_wrap=True)
        for line in run_rows.lines(rows.run) if rows.run else ():
            console.print(line, markup=False, soft_wrap=True)
        for line in verdict(rows, hosting):
            console.print(one_line(line), markup=False, soft_wrap=True)  # a command stays one line, to be copied


def lines(rows: ModelRows) -> Iterator[str]:
    """A model and its nodes in lines that fit 40 columns, but for long names and addresses."""
    yield _title(rows)
    for row in rows.peers:
        yield f"{_span(row)}  {_label(row)}"
        yield f"  {row.state}, {_format(row)}, {_step(row)}"
        yield f"  queue {row.queue}, {counted(row.free_tokens, 'free token', is_grouped=True)}"
        for address in row.addresses:
            yield f"  {address}"
        if reached := _reached(row):
            yield f"  {reached}"


def machines(rows: ModelRows) -> Iterator[str]:
    """Of each node that was asked and has said it: its machine, and what it has done since its start."""
    asked = {row.peer: row for row in rows.peers if row.about is not None}
    for row in asked.values():
        assert row.about is not None
        yield f"{_label(row)}, as it says:"
        for name, text in (*abouts.machine(row.about), *abouts.work(row.about)):
            yield f"  {name}: {text}"


def table(rows: ModelRows) -> Any:
    """The same as a table of rich."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        title=escape(one_line(_title(rows))),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
    )
    for heading in ("blocks", "node", "state", "format", "step", "queue", "free tokens", "address"):
        shown.add_column(heading, justify="right" if heading in ("step", "queue", "free tokens") else "left", overflow="fold")
    for row in rows.peers:
        numbers = (_step(row), str(row.queue), f"{row.free_tokens:,}")
        address = f"{', '.join(row.addresses)} {_reached(row)}".strip()
        cells = (_span(row), _label(row), row.state, _format(row), *numbers, address)
        shown.add_row(*(escape(one_line(cell)) for cell in cells))
    return shown


def _title(rows: ModelRows) -> str:
    return f"{rows.name}@{rows.digest[:12]}, {counted(rows.num_blocks, 'block')}"


def _span(row: PeerRow) -> str:
    return f"{row.start}:{row.stop}{' + ends' if row.ends else ''}"


def _label(row: PeerRow) -> str:
    return f"{row.name} {short_peer(PeerId(row.peer))}".strip()


def _format(row: PeerRow) -> str:
    numbers = row.dtype if row.quantization == "none" else f"{row.dtype} {row.quantization}"
    return f"{numbers}, version {row.version}" if row.version else numbers


def _step(row: PeerRow) -> str:
    return f"{row.step_ms:.1f} ms" if row.step_ms else "-"


def _reached(row: PeerRow) -> str:
    return {None: "(not dialled back yet)", True: "", False: "(cannot be dialled)"}[row.reachable]
