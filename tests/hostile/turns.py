"""CPU time that iterations of the event loop take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Turns:
    """The longest callback that the loop ran, during which it could do nothing else."""

    longest_s: float = 0.0
    what: str = ""
    count: int = 0


@contextmanager
def watched() -> Iterator[Turns]:
    """Measure every callback of every loop in this process."""
    turns, run = Turns(), asyncio.Handle._run  # type: ignore[attr-defined]

    def measured(handle: Any) -> Any:
        started = time.thread_time()
        try:
            return run(handle)
        finally:
            spent_s, turns.count = time.thread_time() - started, turns.count + 1
            if spent_s > turns.longest_s:
                turns.longest_s, turns.what = spent_s, repr(handle)[:200]

    asyncio.Handle._run = measured  # type: ignore[attr-defined]
    try:
        yield turns
    finally:
        asyncio.Handle._run = run  # type: ignore[attr-defined]
