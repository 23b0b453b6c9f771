"""A person at a terminal: a command on a pty.

It tells what the command shows, and types at it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import time

from tests.forked import ForkServer

WAIT_S = 60.0
PRESSED_AGAIN_S = 5.0


class Terminal:
    """`swarm ARGUMENTS` on a terminal of its own; closed, it is gone."""

    def __init__(self, server: ForkServer, *arguments: str) -> None:
        self.shown = ""
        """All that was shown."""
        self._seen = 0
        self._fd, theirs = pty.openpty()
        self._process = server.popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, is_terminal=True)
        os.close(theirs)

    def until(self, text: str, wait_s: float = WAIT_S) -> str:
        """Wait until `text` is shown, behind what was waited for before; what was shown up to it."""
        ends_at = time.monotonic() + wait_s
        while (at := self.shown.find(text, self._seen)) < 0:
            assert self._read(ends_at - time.monotonic()), f"no {text!r} within {wait_s} s: {self.shown[-800:]!r}"
        found, self._seen = self.shown[self._seen : at], at + len(text)
        return found

    def more(self, letters: int) -> None:
        """Wait for some text, whatever it is."""
        while len(self.shown) < self._seen + letters:
            assert self._read(WAIT_S), self.shown[-800:]

    def type(self, text: str | bytes) -> None:
        os.write(self._fd, text if isinstance(text, bytes) else text.encode())

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end; the exit code."""
        while select.select([self._fd], [], [], WAIT_S)[0]:
            if not self._read(0.0):
                break
        else:
            raise AssertionError(f"it did not end within {WAIT_S} s: {self.shown[-800:]!r}")
        return self._process.wait(WAIT_S)

    def press(self, key: bytes, until: str) -> None:
        """Press a key until `until` is shown: CPython's `input` forgets a Ctrl-C that comes just before it waits for the next key."""
        for _ in range(int(WAIT_S / PRESSED_AGAIN_S)):
            self.type(key)
            with contextlib.suppress(AssertionError):
                self.until(until, PRESSED_AGAIN_S)
                return
        self.until(until)

    def leave(self) -> int:
        """Press Ctrl-C until it has ended, as `press`; the exit code."""
        while not self._has_ended():
            with contextlib.suppress(OSError):
                self.type(b"\x03")
        return self._process.wait(WAIT_S)

    def _has_ended(self) -> bool:
        """Nothing more can be shown. It waits for that a second, and longer while something is shown."""
        while select.select([self._fd], [], [], 1.0)[0]:
            if not self._read(0.0):
                return True
        return False

    def close(self) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        os.close(self._fd)

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._fd], [], [], max(0.0, wait_s))[0]:
            return False
        try:
            data = os.read(self._fd, 65_536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)
