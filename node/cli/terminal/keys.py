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
    loop, before = asyncio.get_running_loop(), termios.tcgetattr(number)

    def read() -> None:
        loop.remove_reader(number)
        if not _is_ours(number):  # reading it now would stop this process (SIGTTIN)
            loop.call_later(AGAIN_S, listen)
            return
        with contextlib.suppress(OSError):
            if data := os.read(number, 64):
                for key in data.decode(errors="ignore"):
                    on_key(key)
                listen()

    is_over = False

    def listen() -> None:
        if not is_over:
            loop.add_reader(number, read)

    tty.setcbreak(number, termios.TCSANOW)
    listen()
    try:
        yield
    finally:
        is_over = True
        loop.remove_reader(number)
        if _is_ours(number):
            with contextlib.suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(number, termios.TCSANOW, before)


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
