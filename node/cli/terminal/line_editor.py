"""What a person types at a terminal: history, several lines.

The editing is prompt_toolkit's. It reads keys in raw mode, so that Ctrl-C at the prompt is a key and none is lost; CPython's `input`
forgets one that comes just before it waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from node.cli.terminal.status_line import LINE
from swarm import files

MAX_KEPT = 1_000
"""Texts of the history that stay in its file."""

MAX_FILE_BYTES = 4 << 20
"""A longer history is read from its end only."""


class LineEditor:
    """Asks for one text after the other."""

    def __init__(self, history: Path | None, commands: Sequence[str]) -> None:
        """history: where texts are kept for the arrow keys; None = as long as this lasts. commands: what Tab completes."""
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation=lambda width, number, is_wrapped: "  " if is_wrapped else "… ",
            history=InMemoryHistory() if history is None else TextHistory(history),
            completer=WordCompleter(list(commands), sentence=True),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            key_bindings=_keys(),
            output=_output(),
        )

    def ask(self) -> str:
        """The next text, without its last line end. EOFError at Ctrl-D on an empty line, KeyboardInterrupt at Ctrl-C."""
        with LINE.aside():
            text = self._session.prompt()
            LINE.has_printed("\n")
            return text


def _keys() -> KeyBindings:
    """Enter ends the text, Alt-Enter begins a new line, and so does Enter behind a backslash. What is pasted keeps its lines."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end_of_line:
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def _output() -> Output:
    """The terminal, also if stdout is a file. It is not asked where its cursor is: not every terminal answers."""
    stream = sys.stdout if sys.stdout.isatty() else sys.stderr
    found = Vt100_Output.from_pty(stream, os.environ.get("TERM"))
    found.enable_cpr = False
    return found


class TextHistory(History):
    """Texts in a file of this user (mode 0600), a JSON string in each line. If it cannot be read or written, nothing is kept."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def load_history_strings(self) -> Iterable[str]:
        """The newest first."""
        try:
            with self._file.open("rb") as opened:
                opened.seek(max(0, opened.seek(0, os.SEEK_END) - MAX_FILE_BYTES))
                lines = opened.read().splitlines()
        except OSError:
            return []
        texts = [text for line in lines if (text := _text_of(line)) is not None]
        if len(texts) > 2 * MAX_KEPT:
            with contextlib.suppress(OSError):
                files.replace(self._file, "".join(f"{json.dumps(text)}\n" for text in texts[-MAX_KEPT:]))
        return texts[: -MAX_KEPT - 1 : -1]

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(json.dumps(string).encode() + b"\n")


def _text_of(line: bytes) -> str | None:
    with contextlib.suppress(ValueError):
        text = json.loads(line)
        if isinstance(text, str):
            return text
    return None
