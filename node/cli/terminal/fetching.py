"""Progress of a download of weights.

A bar for a person, a plain line every few seconds for a script.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from node.cli.terminal.console import Lines
from protocols.words import counted

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from swarm.weights.terms import Progress

EVERY_S = 5.0
"""Between two plain lines."""


class FetchProgress:
    """`show` may be called as often as one likes; the bar begins with the first call of a download and ends with the last byte."""

    def __init__(self, lines: Lines, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines, self._clock = lines, clock
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._began: tuple[float, int] | None = None
        """When this download began, and the bytes that were here then."""
        self._said_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def show(self, progress: Progress) -> None:
        """How far it is now."""
        now_s = self._clock()
        if self._began is None:
            self._began = now_s, progress.done_bytes
        if sys.stdout.isatty():
            self._draw(progress)
        elif now_s - self._said_s >= EVERY_S:
            self._said_s = now_s
            self._lines.say("fetching", described(progress, now_s - self._began[0], self._began[1]))
        if progress.done_bytes >= progress.total_bytes:
            self._stop()

    def _draw(self, progress: Progress) -> None:
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            speed = (TransferSpeedColumn(), TimeRemainingColumn(compact=True), TextColumn("{task.fields[note]}"))
            self._bar = Bar(TextColumn("fetching"), BarColumn(bar_width=12), DownloadColumn(), *speed, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("fetch", total=progress.total_bytes, completed=progress.done_bytes, note="")
        assert self._task is not None
        self._bar.update(self._task, total=progress.total_bytes, completed=progress.done_bytes, note=_peers(progress))

    def _stop(self) -> None:
        bar, self._bar, self._began = self._bar, None, None
        if bar is not None:
            bar.stop()


def described(progress: Progress, seconds: float, at_first: int) -> str:
    """One line: how much, how fast, how long still."""
    share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
    text = f"{progress.done_bytes / 1e6:.1f} of {progress.total_bytes / 1e6:.1f} MB ({share:.0%})"
    bytes_s = (progress.done_bytes - at_first) / seconds if seconds > 0 else 0.0
    if bytes_s > 0:
        text += f", {bytes_s / 1e6:.1f} MB/s, {(progress.total_bytes - progress.done_bytes) / bytes_s:.0f} s left"
    return f"{text}, {_note(progress)}"


def _note(progress: Progress) -> str:
    resumed = f", {progress.resumed_bytes / 1e6:.1f} MB were here before" if progress.resumed_bytes else ""
    return f"from {_peers(progress)}{resumed}"


def _peers(progress: Progress) -> str:
    return counted(progress.num_sources, "peer")
