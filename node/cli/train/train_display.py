"""What `swarm train` shows: lines for scripts, a display for people.

For a script: `version: …` for the first version, and then at most one a second, the last one in any case; `evaluation: …`, `sample: …` and
all events. On a terminal, the same lines scroll by, versions left out, above a display of a few lines that is drawn again and again.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from node.cli.terminal import status_line
from node.cli.terminal.console import Lines
from node.events import Event
from node.training.amounts import duration, size
from node.training.metrics import EvaluationRow, Row, VersionRow
from protocols.words import counted, one_line

LINE_S = 1.0
"""Seconds between two lines of versions for a script."""

RECENT = 50
"""Versions whose mean time the estimate of the end goes by."""

TOLD = frozenset(("waiting", "restoring", "left out"))
"""Lines of events that `event` has brought, too."""

NARROW_COLUMNS = 60
"""A narrower terminal gets no bar."""

SPARKS = "▁▂▃▄▅▆▇█"


class Display(Protocol):
    """Told what happens, from one thread."""

    def event(self, event: Event) -> None: ...

    def row(self, row: Row) -> None: ...


@contextmanager
def open_display(name: str, num_steps: int) -> Iterator[Display]:
    """The display that fits where the output goes."""
    if status_line.is_usable() and sys.stdout.isatty():
        with LiveDisplay(name, num_steps, Console(highlight=False)).shown() as live:
            yield live
    else:
        yield LineDisplay(num_steps)


class LineDisplay:
    """One line at a time, on stdout."""

    def __init__(self, num_steps: int, lines: Lines | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_steps, self._lines, self._clock = num_steps, lines or Lines(), clock
        self._said_s = float("-inf")

    def event(self, event: Event) -> None:
        self._lines.say(event.kind, event.text)

    def row(self, row: Row) -> None:
        if isinstance(row, VersionRow):
            self._version(row)
        elif isinstance(row, EvaluationRow):
            for kind, text in evaluation_lines(row):
                self._lines.say(kind, text)
        elif row.event not in TOLD:
            self._lines.say(row.event, row.text)

    def _version(self, row: VersionRow) -> None:
        now_s = self._clock()
        if now_s - self._said_s >= LINE_S or row.version >= self._num_steps:
            self._said_s = now_s
            self._lines.say("version", version_line(row))


class LiveDisplay:
    """A few lines at the bottom of a terminal: progress, numbers, the last sample, what is waited for."""

    def __init__(self, name: str, num_steps: int, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._num_steps, self._console, self._clock = name, num_steps, console, clock
        columns: list[ProgressColumn] = [
            TextColumn("[bold]{task.description}"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        ]
        if console.width >= NARROW_COLUMNS:
            columns[1:1] = [BarColumn(bar_width=None), TaskProgressColumn()]
        self._progress = Progress(*columns, console=console, expand=True)
        self._task = self._progress.add_task(name, total=num_steps, left="")
        self._times: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self._losses: list[float] = []
        self._row: VersionRow | None = None
        self._evaluation: EvaluationRow | None = None
        self._waiting = ""
        self._redone = self._sent = 0
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[LiveDisplay]:
        """Draw from the event `ready` or the first version on: before them, a question may be asked. What stands at the end stays."""
        self._live = Live(get_renderable=self.render, console=self._console, refresh_per_second=4, redirect_stdout=False)
        try:
            yield self
        finally:
            self._live.stop()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.start()  # again: does nothing

    def event(self, event: Event) -> None:
        if event.kind == "ready":
            self._draw()
        if event.kind == "waiting":
            self._waiting = one_line(event.text)
        else:
            self._say(event.kind, event.text)

    def row(self, row: Row) -> None:
        self._draw()
        if isinstance(row, VersionRow):
            self._version(row)
        elif isinstance(row, EvaluationRow):
            self._evaluation = row
            self._say(*evaluation_lines(row)[0])
        elif row.event not in TOLD:
            self._say(row.event, row.text)

    def _version(self, row: VersionRow) -> None:
        self._row, self._waiting = row, ""
        self._redone, self._sent = self._redone + row.redone, self._sent + row.bytes_sent
        self._losses += [] if row.loss is None else [row.loss]
        self._times.append((self._clock(), row.version))
        self._progress.update(self._task, completed=row.version, left=self._left())

    def _left(self) -> str:
        (first_s, first), (last_s, last) = self._times[0], self._times[-1]
        left = self._num_steps - last
        return "" if last == first else f"{duration((last_s - first_s) / (last - first) * left)} left" if left else "done"

    def _say(self, kind: str, text: str) -> None:
        self._console.print(Text.assemble((kind, "bold cyan"), f": {one_line(text)}" if text else ""), soft_wrap=True)

    def render(self) -> Group:
        """The lines as they are now."""
        return Group(self._progress, *self._numbers(), *self._sample(), *self._wait())

    def _numbers(self) -> Iterator[Table]:
        row, found = self._row, self._evaluation
        if row is None:
            return
        table = Table.grid(padding=(0, 2))
        bits = f"{found.bits_per_byte:.3f} at {found.evaluation}" if found and found.bits_per_byte is not None else "–"
        waited = 100 * row.waiting_s * row.tokens_per_s / max(1, row.tokens / row.version)
        cells = {
            "loss": _loss(row), "": sparks(self._losses), "bits per byte": bits, "lr": f"{row.lr:.2e}",
            "grad": f"{row.grad_norm:.2f}", "tokens/s": f"{row.tokens_per_s:,.0f}", "stages": str(row.peers),
            "sent": size(self._sent), "closing": f"{waited:.0f} %", "redone": str(self._redone),
        }  # fmt: skip
        for some in _in_rows(cells, self._console.width):
            table = Table.grid(padding=(0, 2))
            table.add_row(*(Text.assemble((f"{key} " if key else "", "dim"), value) for key, value in some))
            yield table

    def _sample(self) -> Iterator[Text]:
        if self._evaluation is not None:
            for prompt, said in list(self._evaluation.samples.items())[:2]:
                yield Text(one_line(with_prompt(prompt, said))[: 2 * self._console.width - 4], style="italic")

    def _wait(self) -> Iterator[Text]:
        if self._waiting:
            yield Text(self._waiting, style="yellow")


def _in_rows(cells: dict[str, str], width: int) -> Iterator[list[tuple[str, str]]]:
    """As many on one line as fit."""
    row: list[tuple[str, str]] = []
    used = 0
    for key, value in cells.items():
        needed = len(key) + len(value) + 3
        if row and used + needed > width:
            yield row
            row, used = [], 0
        row.append((key, value))
        used += needed
    if row:
        yield row


def sparks(values: list[float], width: int = 16) -> str:
    """A line of bars, each the mean of its part of the values; "" for fewer than two."""
    if len(values) < 2:
        return ""
    width = min(width, len(values))
    edges = [len(values) * at // width for at in range(width + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def _loss(row: VersionRow) -> str:
    return "unknown" if row.loss is None else f"{row.loss:.4f}"


def version_line(row: VersionRow) -> str:
    """One line about a version."""
    redone = f", {row.redone} redone" if row.redone else ""
    return (
        f"{row.version}: loss {_loss(row)}, lr {row.lr:.2e}, grad {row.grad_norm:.3f}, {row.tokens_per_s:,.0f} tokens/s, "
        f"{counted(row.peers, 'stage')}, {size(row.bytes_sent)} sent{redone}"
    )


def evaluation_lines(row: EvaluationRow) -> list[tuple[str, str]]:
    """Kinds and texts: the evaluation, then each sample."""
    if row.loss is None:
        head = f"{row.evaluation}: no validation data"
    else:
        head = f"{row.evaluation}: loss {row.loss:.4f}, perplexity {row.perplexity:.2f}, {row.bits_per_byte:.4f} bits per byte"
    return [
        ("evaluation", head),
        *(("sample", f"{row.evaluation}: {with_prompt(prompt, said)}") for prompt, said in row.samples.items()),
    ]


def with_prompt(prompt: str, said: str) -> str:
    """A prompt and what follows, on one line."""
    return f"{prompt}{' ' if said[:1].isspace() else ''}{' '.join(said.split()) or '(white space)'}"
