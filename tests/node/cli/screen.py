"""A screen for tests: what bytes from a pty look like.

It has some columns and lines, and knows the few escape sequences that we use.
"""

from __future__ import annotations

import re

_PIECES = re.compile(r"\x1b\[\??(\d*)([A-Za-z])|\x1b([78DE=>])|([\s\S])")


class Screen:
    """Feed it text; `lines` is what a person sees. A letter in the last column waits there, as with a real terminal, until more comes."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._cells = [[" "] * columns for _ in range(rows)]
        self._row = self._column = 0
        self._kept = (0, 0)

    @property
    def lines(self) -> list[str]:
        """Without empty ones at the end."""
        lines = ["".join(row).rstrip() for row in self._cells]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def feed(self, text: str) -> None:
        for number, letter, short, plain in _PIECES.findall(text):
            if plain:
                self._put(plain)
            elif short:
                self._short(short)
            elif letter == "A":
                self._row = max(0, self._row - int(number or 1))
            elif letter == "K":
                self._cells[self._row][min(self._column, self.columns - 1) :] = [" "] * (
                    self.columns - min(self._column, self.columns - 1)
                )

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self._column = 0
        elif letter == "\n":
            self._down()
        elif letter.isprintable():
            if self._column == self.columns:
                self._column = 0
                self._down()
            self._cells[self._row][self._column] = letter
            self._column += 1

    def _short(self, letter: str) -> None:
        if letter == "7":
            self._kept = self._row, self._column
        elif letter == "8":
            self._row, self._column = self._kept
        elif letter == "D":
            self._down()

    def _down(self) -> None:
        if self._row == self.rows - 1:
            self._cells = [*self._cells[1:], [" "] * self.columns]
        else:
            self._row += 1
