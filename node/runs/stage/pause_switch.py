"""Whether a node trains now: by hours, and by hand.

`toggle` (a signal, a key) changes it at once, and holds until the next change by hours or by hand. Nothing heavy is imported here: the
command line makes the switch before it imports torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

from node.train_hours import TrainHours

LOOK_S = 5.0
"""Seconds between two looks at the clock."""

BY_HAND = "by hand"


class PauseSwitch:
    """All methods belong to one event loop."""

    def __init__(self, hours: TrainHours | None = None, local_now: Callable[[], datetime] = datetime.now) -> None:
        """hours: None = always."""
        self._hours, self._local_now = hours, local_now
        self._was_outside = self._is_outside()
        self._by_hand: bool | None = None
        self._changed, self._told = asyncio.Event(), False

    @property
    def is_paused(self) -> bool:
        """Does the node take no micro-batches now?"""
        if (is_outside := self._is_outside()) != self._was_outside:
            self._was_outside, self._by_hand = is_outside, None
        return is_outside if self._by_hand is None else self._by_hand

    @property
    def reason(self) -> str:
        """Why it is as it is; "" if nothing asks for it."""
        if self._by_hand is not None:
            return BY_HAND
        if self._hours is None:
            return ""
        return f"{'outside' if self._is_outside() else 'within'} --train-hours {self._hours}"

    def toggle(self) -> None:
        """Pause, or go on."""
        self._by_hand = not self.is_paused
        self._changed.set()

    def tell(self, apply: Callable[[bool, str], None]) -> None:
        """Call `apply(is_paused, reason)` if it has changed since the last call; the first time, if it is paused."""
        if (now := self.is_paused) != self._told:
            self._told = now
            apply(now, self.reason)

    async def follow(self, apply: Callable[[bool, str], None]) -> NoReturn:
        """As `tell`, now and after each change, until cancelled."""
        while True:
            self.tell(apply)
            self._changed.clear()
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _is_outside(self) -> bool:
        return self._hours is not None and not self._hours.include(self._local_now().time())
