"""A person at a terminal: a command on a pty.

It tells what the command shows, and types at it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import time

from tests.forked import ForkServer

ASKS = "\x1b[?2004h"
"""What prompt_toolkit shows first when it asks for a text: pasted lines shall come as such."""

PROMPT = "⟨prompt⟩"
"""What `shown` has in its place."""

MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HALF = re.compile(r"\x1b(\[[0-9;?]*)?$")
WAIT_S = 60.0


class Terminal:
    """`swarm ARGUMENTS` on a terminal of its own; closed, it is gone."""

    def __init__(self, server: ForkServer, *arguments: str) -> None:
        self.shown = ""
        """All that was shown, without the sequences that colour text and move the cursor."""
        self._partial = ""
        """The beginning of such a sequence, whose end has not come yet."""
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

    def say(self, text: str) -> None:
        """Type a text and Enter, and wait until it stands there; what comes next is the answer."""
        self.type(f"{text}\n")
        self.until(text)
        self.until("\n")

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

    def leave(self) -> int:
        """Press Ctrl-C until it has ended: a busy machine may see two further apart than a second.

        The exit code as a shell has it: one Ctrl-C more, while Python ends, is death by that signal, which is 130, too.
        """
        while not self._has_ended():
            with contextlib.suppress(OSError):
                self.type(b"\x03")
        code = self._process.wait(WAIT_S)
        return 128 - code if code < 0 else code

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
        text = MOVES.sub("", (self._partial + data.decode(errors="replace")).replace(ASKS, PROMPT))
        half = HALF.search(text)
        self._partial = half[0] if half else ""
        self.shown += text[: half.start()] if half else text
        return bool(data)
