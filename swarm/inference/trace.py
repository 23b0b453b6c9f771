"""Where a token is, and when: with `SWARM_TRACE=FILE`, every part appends a JSON line as a step passes it.

`scripts/trace_token` reads the lines of all processes of one machine (they share its monotonic clock) and prints T1–T9.
"""

from __future__ import annotations

import json
import os
import time

from protocols.ids import SessionId, short

_path = os.environ.get("SWARM_TRACE")
_file = os.open(_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if _path else None


def mark(place: str, session: SessionId, step: int, num_bytes: int = 0) -> None:
    """Note that `step` of `session` is at `place` now. One write, so that lines of several processes never mix."""
    if _file is not None:
        entry = {
            "place": place,
            "session": short(session),
            "step": step,
            "bytes": num_bytes,
            "ns": time.monotonic_ns(),
            "pid": os.getpid(),
        }
        os.write(_file, json.dumps(entry).encode() + b"\n")
