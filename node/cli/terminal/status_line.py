"""One changing line on a terminal that disturbs no other output.

It stands at the cursor where that is at the beginning of a line, else (in the middle of an answer) on the line below, and the cursor
goes back to where the answer goes on. Code that prints something does it inside `aside`, which takes the line away first.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size

ERASE = "\r\x1b[K"
BELOW = "\x1b7\r\n\x1b[K"
"""Keep the place, and go to an empty line below."""
BACK = "\x1b8"
TAIL = 18
"""Letters at the end of a text that stay where it is cut, as `(12 s of 60)`; more of them if the numbers are longer."""

NUMBERS = re.compile(r"(: \d+ %)? \([^()]*\)$")
"""`: 40 % (100 s, 150 s left)` at the end of a text."""

MAKE_ROOM = "\x1bD\x1b[A"
"""One down, which scrolls at the bottom of the screen, and up again: from here on there is a line below."""


class StatusLine:
    """From any thread. The terminal is that of stderr; if an answer goes to the same one, its cursor is followed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._column = 0
        """Where the answer's last line ends; 0 = at the beginning of a line."""
        self._drawn: str | None = None
        self._is_held = False

    @property
    def is_drawn(self) -> bool:
        return self._drawn is not None

    def draw(self, text: str) -> None:
        """Show this instead of what is shown; what does not fit is cut off."""
        with self._lock:
            shown = fitted(text, width() - 1)
            if shown == self._drawn or self._is_held:
                return
            begin = self._begin(is_first=self._drawn is None)
            _write(f"{begin}{shown}" if not self._column else f"{begin}{shown}{BACK}")
            self._drawn = shown

    def _begin(self, is_first: bool) -> str:
        """What takes the cursor to an empty line."""
        if not self._column:
            return ERASE
        if is_first and self._column % width() == 0:  # the answer's next letter would be the first of a new line: go there
            self._column = 0
            return "\r\n"
        return f"{MAKE_ROOM if is_first else ''}{BELOW}"

    def erase(self) -> None:
        """Take the line away, if there is one."""
        with self._lock:
            if self._drawn is not None:
                self._drawn = None
                _write(f"{BELOW}{BACK}" if self._column else ERASE)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing is drawn inside; print there."""
        with self._lock:
            self.erase()
            yield

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is drawn inside, and who draws does not wait for the end: for a question that a person may think about."""
        with self._lock:
            self.erase()
            self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def has_printed(self, text: str) -> None:
        """This went to the terminal just now."""
        _, end, last = text.rpartition("\n")
        with self._lock:
            self._column = cell_len(last) + (0 if end else self._column)


LINE = StatusLine()
"""A process has one terminal."""


def is_usable() -> bool:
    """Is stderr a terminal on which a line can be taken away again?"""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")


def width() -> int:
    """Columns of the terminal; 80 if it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def fitted(text: str, cells: int) -> str:
    """As much of a text as fits, without control letters: its beginning and its last words, which are the numbers."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if cell_len(text) <= cells:
        return text
    numbers = NUMBERS.search(text)
    length = min(max(TAIL, len(numbers[0])), cells * 2 // 3) if numbers else min(TAIL, cells // 2)
    tail = text[-length:] if length and cells > 1 else ""
    return set_cell_size(text, max(0, cells - 1 - cell_len(tail))) + "…" + tail if cells > 0 else ""


def _write(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # the terminal is gone: the next write of output raises
        sys.stderr.write(text)
        sys.stderr.flush()
