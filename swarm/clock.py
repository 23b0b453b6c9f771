"""The time that decisions use: passed in for tests.

Waits are asyncio's (`sleep`, `timeout`, `wait`) and end by the event loop's clock, so a `Clock` counts the same seconds as the loop in
which it is used. A test gives both: a loop of virtual time, and a clock that reads it (tests/virtual_time.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Two functions. A part that asks for one kind of time only may take just that function."""

    now_s: Callable[[], float] = time.monotonic
    """Seconds since a moment of no meaning; they never go back, and are compared with times of the same clock only."""

    unix_s: Callable[[], float] = time.time
    """Seconds since 1970, for times that other machines read: of records, grants and credentials."""


SYSTEM = Clock()
"""This machine's clock, which asyncio's own event loops go by."""
