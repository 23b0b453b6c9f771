"""Where lines go: plain and flushed for scripts, coloured for a person; stdout for results, stderr for remarks."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text


class Lines:
    """`kind: text` lines on stdout, each complete and flushed. Scripts may rely on the kinds; order is that of events."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False) if sys.stdout.isatty() else None

    def say(self, kind: str, text: str = "") -> None:
        if self._console is None:
            print(f"{kind}: {text}" if text else kind, flush=True)
            return
        self._console.print(Text.assemble((kind, "bold cyan"), f": {text}" if text else ""))


def remark(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def write_piece(piece: str) -> None:
    """A piece of an answer on stdout. On a terminal without control letters: a model may have learnt escape sequences."""
    if sys.stdout.isatty():
        piece = "".join(letter for letter in piece if letter in "\n\t" or letter.isprintable())
    print(piece, end="", flush=True)
