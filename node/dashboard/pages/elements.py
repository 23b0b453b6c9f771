"""Our own elements, each drawn by a small component of Vue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from nicegui import ui

from node.watching.changes import Change
from node.watching.grid import LOADS, Grid

SHOWN_CHANGES = 100
"""Lines of the list of events."""


class GridElement(ui.element, component="grid.js"):
    """One model's blocks and nodes."""

    def __init__(self, grid: Grid, home: str) -> None:
        super().__init__()
        self._grid = grid
        self._props |= {"grid": asdict(grid), "home": home, "loads": list(LOADS), "menus": {}}

    def show(self, grid: Grid) -> None:
        """Draw it anew, if it is another one."""
        if grid != self._grid:
            self._grid = grid
            self._props["grid"] = asdict(grid)
            self.update()

    def show_menus(self, menus: Mapping[str, list[tuple[str, str]]]) -> None:
        """Orders that this visitor may give, by PeerID: the last word of the address, and the name."""
        if menus != self._props["menus"]:
            self._props["menus"] = dict(menus)
            self.update()


class EventsElement(ui.element, component="events.js"):
    """What has happened, the newest first."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = -1
        self._props["lines"] = []

    def show(self, changes: Sequence[Change], number: int) -> None:
        """number: of all changes there ever were, so that each line keeps its own."""
        if number == self._shown:
            return
        self._shown = number
        newest = list(reversed(changes))[:SHOWN_CHANGES]
        self._props["lines"] = [_line(one, number - at) for at, one in enumerate(newest)]
        self.update()


def _line(one: Change, number: int) -> dict[str, object]:
    moment = time.localtime(one.at_s)
    return {
        "number": number, "kind": one.kind, "text": one.text, "clock": time.strftime("%H:%M:%S", moment),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z", moment),
    }  # fmt: skip
