"""Reads the marks of a trace, in the order of time.

With `SWARM_TRACE=FILE` every process writes them (`swarm/trace.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mark:
    """One line of the trace."""

    place: str
    step: int
    num_bytes: int
    at_ns: int
    process: int
    session: str = ""
    """The beginning of a session's id; in training, the version in hex."""


def read_marks(path: Path) -> list[Mark]:
    """All marks of all processes, by time."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    marks = [Mark(line["place"], line["step"], line["bytes"], line["ns"], line["pid"], line["session"]) for line in lines]
    return sorted(marks, key=lambda mark: mark.at_ns)
