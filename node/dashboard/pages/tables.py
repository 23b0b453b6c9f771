"""Plain tables and lists of facts."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

SHORT = 40
"""Letters of a name that stays on one line, if the window is not narrow."""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], num_texts: int = 1) -> None:
    """A table whose first column names each line. num_texts: columns that are text; the others are numbers."""
    with ui.element("div").classes("mm-scroll"), ui.element("table").classes("mm-table"):
        with ui.element("caption"):
            ui.label(caption)
        with ui.element("thead"), ui.element("tr"):
            for at, head in enumerate(heads):
                with ui.element("th").props('scope="col"').classes("" if at < num_texts else "mm-number"):
                    ui.label(head)
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for at, cell in enumerate(row):
                        with ui.element("th" if at == 0 else "td").classes(_classes(at, cell, num_texts)):
                            ui.label(cell)


def _classes(at: int, cell: str, num_texts: int) -> str:
    if at >= num_texts:
        return "mm-number"
    return "mm-short" if at == 0 and len(cell) <= SHORT else ""


def fact_list(facts: Sequence[tuple[str, str]]) -> None:
    """Names with their texts."""
    with ui.element("dl").classes("mm-facts"):
        for name, text in facts:
            with ui.element("dt"):
                ui.label(name)
            with ui.element("dd"):
                ui.label(text)


class Redrawn:
    """A place whose content is made anew if what it shows has changed."""

    def __init__(self) -> None:
        self.box = ui.element("div")
        self._shown: object = None

    def is_new(self, shown: object) -> bool:
        """Whether it has to be drawn anew; then it is empty."""
        if shown == self._shown:
            return False
        self._shown = shown
        self.box.clear()
        return True
