"""Where a token is, and when.

With `SWARM_TRACE=FILE`, every part writes a line of JSON as a step passes it.

`scripts/trace_token` reads the lines of all processes of one machine (they share its monotonic clock) and prints T1–T9,
`scripts/trace_gradient` prints G1–G9; `scripts/bench` finds in them where each microsecond of a hop goes. A mark costs a third of a
microsecond: lines are written together, when many wait or the process ends (not when it is killed).
"""

from __future__ import annotations

import atexit
import json
import os
import time

from protocols.ids import SessionId, short

_WAITING = 4_096
"""Marks that wait to be written."""

NOBODY = SessionId(bytes(16))
"""Where no session is at hand, or the step's number is not known: the process has only one of them going."""

VERSION = -1
"""In place of a micro-batch's index: all of them."""

_path = os.environ.get("SWARM_TRACE")
_file = os.open(_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if _path else None
_marks: list[tuple[str, SessionId, int, int, int]] = []


def mark(place: str, session: SessionId, step: int, num_bytes: int = 0) -> None:
    """Note that `step` of `session` is at `place` now. From any thread."""
    if _file is not None:
        _marks.append((place, session, step, num_bytes, time.monotonic_ns()))
        if len(_marks) >= _WAITING:
            flush()


def mark_gradient(place: str, version: int, index: int | None, num_bytes: int = 0) -> None:
    """Note that micro-batch `index` of a run's version is at `place`; VERSION: the version itself. None (a client's pass) is not noted."""
    if _file is not None and index is not None:
        mark(place, of_version(version), index, num_bytes)


def of_version(version: int) -> SessionId:
    """What stands for a version of a run where a step has its session."""
    return SessionId(version.to_bytes(4, "big") + bytes(12))


def flush() -> None:
    """Write what waits. One write, so that lines of several processes never mix."""
    if _file is not None:
        written, process = _marks[:], os.getpid()
        del _marks[: len(written)]
        names = ("place", "session", "step", "bytes", "ns", "pid")
        lines = (
            json.dumps(dict(zip(names, (place, short(session), step, size, ns, process), strict=True)))
            for place, session, step, size, ns in written
        )
        os.write(_file, "".join(f"{line}\n" for line in lines).encode())


atexit.register(flush)
