"""Guards torch's default dtype, which transformers changes while it builds a model.

The dtype holds for all threads, so no thread may compute in that moment. A node that moves builds its next span while the old one
serves. Forwards share the dtype (`computing`), of any number of engines in this process; a thread that builds has it alone (`building`),
for the milliseconds in which a model without memory is put together.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Many may share it, or one has it alone. One who waits to have it alone goes before those who come to share it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_sharing = 0
        self._num_waiting = 0
        self._is_alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Wait while a thread has it alone, or waits to; not to be nested."""
        with self._changed:
            while self._is_alone or self._num_waiting:
                self._changed.wait()
            self._num_sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other thread has it; not to be nested."""
        with self._changed:
            self._num_waiting += 1
            while self._is_alone or self._num_sharing:
                self._changed.wait()
            self._num_waiting -= 1
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._changed.notify_all()


_lock = SharedLock()
computing, building = _lock.shared, _lock.alone
