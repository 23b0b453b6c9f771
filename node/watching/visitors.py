"""Counts visitors: work that only visitors need waits for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Visitors:
    """The visitors of one watcher. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._num = 0
        self.here = asyncio.Event()
        """Set while one or more watch."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A visitor watches, within the block."""
        self._num += 1
        self.here.set()
        try:
            yield
        finally:
            self._num -= 1
            if not self._num:
                self.here.clear()
