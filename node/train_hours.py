"""The hours of a day in which a node trains. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import time

from protocols.errors import ConfigError

_FORM = re.compile(r"(\d{1,2})(?::(\d{2}))?-(\d{1,2})(?::(\d{2}))?")


@dataclass(frozen=True, slots=True)
class TrainHours:
    """From `start` on, until `stop`, in local time; over midnight if `stop` is earlier."""

    start: time
    stop: time

    @classmethod
    def parse(cls, text: str) -> TrainHours:
        """Read `23-7` or `22:30-6:15`. ConfigError for anything else, and if both are the same time."""
        match = _FORM.fullmatch(text)
        if match is None or int(match[1]) > 23 or int(match[3]) > 24:
            raise ConfigError(f"--train-hours is written FROM-TO in local time, as in 23-7 or 22:30-6:15, got {text[:40]!r}")
        minutes = [int(match[hour]) * 60 + int(match[hour + 1] or 0) for hour in (1, 3)]
        if max(minutes) > 24 * 60 or int(match[2] or 0) > 59 or int(match[4] or 0) > 59:
            raise ConfigError(f"--train-hours has minutes from 00 to 59, and ends at 24 at the latest, got {text[:40]!r}")
        if minutes[0] == minutes[1] % (24 * 60):
            raise ConfigError(f"--train-hours begins and ends at the same time, got {text[:40]!r}: leave it out to train all day")
        return cls(*(time(minute // 60 % 24, minute % 60) for minute in minutes))

    def include(self, now: time) -> bool:
        """Does the node train at this time of the day?"""
        if self.start < self.stop:
            return self.start <= now < self.stop
        return now >= self.start or now < self.stop

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.stop:%H:%M}"
