"""Keys that are typed at a running command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

AGAIN_S = 1.0
"""Seconds until the terminal is looked at again, if another program has it now (`Ctrl-Z` and `bg`)."""


@contextlib.contextmanager
def typed(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` with each key that is typed, without Enter. Nothing is done unless stdin is a terminal and this command has it.

    Ctrl-C and the like stay what they are. Afterwards the terminal is as before.
    """
    try:
        import termios
        import tty
    except ImportError:  # not on this system
        yield
        return
    number = _stdin()
    if number is None or not _is_ours(number):
        yield
        return
    before, reader = termios.tcgetattr(number), _Reader(number, on_key)
    tty.setcbreak(number, termios.TCSANOW)
    reader.listen()
    try:
        yield
    finally:
        reader.stop()
        if _is_ours(number):
            with contextlib.suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(number, termios.TCSANOW, before)


class _Reader:
    """Reads a terminal whenever a key is typed, and not while another program has it."""

    def __init__(self, number: int, on_key: Callable[[str], None]) -> None:
        self._number, self._on_key, self._loop = number, on_key, asyncio.get_running_loop()
        self._is_over = False

    def listen(self) -> None:
        if not self._is_over:
            self._loop.add_reader(self._number, self._read)

    def stop(self) -> None:
        self._is_over = True
        self._loop.remove_reader(self._number)

    def _read(self) -> None:
        self._loop.remove_reader(self._number)
        if not _is_ours(self._number):  # reading it now would stop this process (SIGTTIN)
            self._loop.call_later(AGAIN_S, self.listen)
            return
        with contextlib.suppress(OSError):
            if data := os.read(self._number, 64):
                for key in data.decode(errors="ignore"):
                    self._on_key(key)
                self.listen()


def _stdin() -> int | None:
    try:
        return sys.stdin.fileno() if sys.stdin.isatty() else None
    except (ValueError, OSError):
        return None


def _is_ours(number: int) -> bool:
    """Is this process in the terminal's foreground?"""
    try:
        return os.tcgetpgrp(number) == os.getpgrp()
    except OSError:
        return False
