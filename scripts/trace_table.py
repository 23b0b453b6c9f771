"""A table of one path's marks, in order of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marks import Mark
from rich.table import Table


def table_of(
    title: str, marks: Sequence[Mark], stages: Mapping[str, tuple[str, str]], names: Mapping[int, str], other: str
) -> Table:
    """A line of each mark: ms since the first one, since the one before, and the payload's bytes.

    stages: by a mark's place, the part of the path and what happens there. names: by process; `other` is all other processes' name.
    """
    table = Table(title=title, title_justify="left")
    for column in ("", "where", "what"):
        table.add_column(column)
    for column in ("ms", "+ ms", "bytes"):
        table.add_column(column, justify="right")
    first = before = marks[0].at_ns
    for mark in marks:
        stage, text = stages[mark.place]
        since, step = (mark.at_ns - first) / 1e6, (mark.at_ns - before) / 1e6
        num_bytes = f"{mark.num_bytes:,}" if mark.num_bytes else ""
        table.add_row(stage, names.get(mark.process, other), text, f"{since:.2f}", f"{step:.2f}", num_bytes)
        before = mark.at_ns
    return table
