"""Where output lines go: results to stdout, remarks to stderr.

Plain and flushed for scripts, coloured for a person.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import traceback
import unicodedata

from rich.console import Console
from rich.text import Text

from node.cli.terminal import status_line
from node.cli.terminal.status_line import LINE
from protocols.words import one_line


def open_closed() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr (`2>&-`): else the next file or socket that is opened takes its number,
    and Python, which has None there, prints an error to stdout. Call it before anything is opened."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY if number else os.O_RDONLY)  # the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def forget_readers() -> None:
    """The reader of stdout or stderr has gone: what is still to be flushed at exit goes to /dev/null."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(io.UnsupportedOperation, OSError, ValueError):  # a test's own stream has no number
            try:
                stream.flush()
            except BrokenPipeError:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def forget_terminal() -> None:
    """The terminal was closed: stdout and stderr, if they were that terminal, go to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):  # isatty is false of a closed one
            os.dup2(null, number)
    os.close(null)


def show_cursor() -> None:
    """Before the process ends at once: a display may have hidden it."""
    with contextlib.suppress(OSError):
        if os.isatty(1) and status_line.is_usable():
            os.write(1, b"\x1b[?25h")


class Lines:
    """`kind: text` lines on stdout, each complete and flushed. Scripts may rely on the kinds; order is that of events."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False) if sys.stdout.isatty() else None

    def say(self, kind: str, text: str = "") -> None:
        text = one_line(text)  # or a peer's text could say a line of another kind
        with LINE.aside():
            if self._console is None:
                print(f"{kind}: {text}" if text else kind, flush=True)
                return
            self._console.print(Text.assemble((kind, "bold cyan"), f": {text}" if text else ""))


def remark(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    with LINE.aside():
        print(one_line(text), file=sys.stderr, flush=True)
        LINE.has_printed("\n")


def write_piece(piece: str) -> None:
    """A piece of an answer on stdout. On a terminal without control letters: a model may write escape sequences."""
    if sys.stdout.isatty():
        piece = shown(piece)
    with LINE.aside():
        print(piece, end="", flush=True)
        if sys.stdout.isatty():
            LINE.has_printed(piece)


def shown(piece: str) -> str:
    """An answer's text without what a terminal obeys; joiners of letters, spaces that do not break and the like stay."""
    if piece.isprintable():
        return piece
    return "".join(letter for letter in piece if letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"))


def trace(error: BaseException) -> None:
    """A traceback on stderr, for `--debug`."""
    for line in "".join(traceback.format_exception(error)).splitlines():
        remark(line)
