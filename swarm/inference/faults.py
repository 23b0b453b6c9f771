"""Named moments at which a test may let a process die, exactly: `SWARM_FAULT=after_send:step=5`.

Points of a hop: `opened`, `before_compute`, `after_compute`, `before_send`, `after_send`, `before_history`, `after_history`.
Without the variable, a point costs one comparison with None.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

POINTS = ("opened", "before_compute", "after_compute", "before_send", "after_send", "before_history", "after_history")


@dataclass(frozen=True, slots=True)
class Fault:
    """Die at `point` of step `step` (-1: any step)."""

    point: str
    step: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        point, _, rest = text.partition(":")
        if point not in POINTS or not (rest == "" or rest.startswith("step=")):
            raise ValueError(f"SWARM_FAULT is POINT[:step=N] with POINT one of {', '.join(POINTS)}, got {text!r}")
        return cls(point, int(rest.removeprefix("step=") or -1))


_armed = Fault.parse(os.environ["SWARM_FAULT"]) if os.environ.get("SWARM_FAULT") else None


def point(name: str, step: int) -> None:
    """Kill this process, as `kill -9` would, if the environment armed this point and step."""
    if _armed is not None and _armed.point == name and _armed.step in (-1, step):
        os.kill(os.getpid(), signal.SIGKILL)
