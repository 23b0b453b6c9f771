"""Processes of a session, and their processor time."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

SESSION, PARENT, USER_TICKS, SYSTEM_TICKS = 3, 1, 11, 12
"""Fields of /proc/PID/stat behind the name."""


def processes_of(leader: int) -> dict[int, list[str]]:
    """The processes of the session that `leader` leads, and its children in other ones (hivemind forks); each with its fields."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if leader in (int(entry.name), int(fields[SESSION]), int(fields[PARENT])):
                found[int(entry.name)] = fields
    return found


def cpu_s(leaders: Iterable[int]) -> float:
    """Processor seconds of these sessions so far."""
    found = {pid: fields for leader in leaders for pid, fields in processes_of(leader).items()}
    ticks = sum(int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS]) for fields in found.values())
    return ticks / os.sysconf("SC_CLK_TCK")
