"""SIGTERM and SIGHUP end a command that asks as Ctrl-C does.

Its sessions at the nodes end with it, which takes a moment. Then the process dies by the signal itself, so that a shell or a supervisor
sees what it would have seen otherwise (143 and 129). A second signal ends the process at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

from node.cli.terminal.console import forget_terminal

_NUMBERS = (signal.SIGTERM, signal.SIGHUP)
_stopped_by: int | None = None


def is_stopping() -> bool:
    """Such a signal has come: this Ctrl-C is none of the person's, and ends the command whatever it does."""
    return _stopped_by is not None


@contextlib.contextmanager
def as_by_ctrl_c() -> Iterator[None]:
    """While it lasts, these signals arrive as Ctrl-C. What ignores one (`nohup`) keeps ignoring it.

    In another thread than the main one nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    ours = [number for number in _NUMBERS if is_main and signal.getsignal(number) is signal.SIG_DFL]
    atexit.unregister(_die)
    atexit.register(_die)  # before the swarm's: what is registered first is called last
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _frame: object) -> None:
    global _stopped_by
    _stopped_by = number
    for other in _NUMBERS:
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_DFL)
    if number == signal.SIGHUP:
        forget_terminal()
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)  # the current handler of Ctrl-C knows how to end what runs
    else:  # a shell ignores it in what it starts in the background
        raise KeyboardInterrupt


def _die() -> None:
    if _stopped_by is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        signal.signal(_stopped_by, signal.SIG_DFL)
        os.kill(os.getpid(), _stopped_by)
