"""Named moments at which a test may end a process.

`SWARM_FAULT=after_send:step=5` ends it at exactly that moment.

Points of a hop: `opened` (step: the next one that it wants), `before_compute`, `after_compute`, `before_send`, `after_send` (the
frame has been handed to the transport), `before_history`, `after_history` (step: the first one after the history).
Points of a checkpoint's writer: `checkpoint_unit` (step: units that are durable), then `checkpoint_list`, `checkpoint_rename` and
`checkpoint_published` (step: the version).
Points of a replica that averages (`swarm/averaging/`; step: a place in the group, of `slice` a piece): `averaging_card` (before it gives
its card), `averaging_slice` (a piece of its slice is reduced), `averaging_reduced` (before its vote), `averaging_voted` (before its leader
hears the vote), `averaging_decided` (told, but it has not noted it), `averaging_telling` (a leader has decided, and has told no member),
`averaging_told` (it has told this one), `averaging_applying` (before the step), `averaging_applied` (after it, before its answer).
Points of a stage that trains (`node/training/pass_compute.py`; step: the micro-batch's index): `training_forward`, `training_backward`
(before each), `training_added` (its sums have the micro-batch, and its caller does not know).
`SWARM_FAULTS=FOLDER` arms processes that run already: the process that first reaches a point that has a file there, named like
`after_send:step=5` or `after_send`, removes the file and dies; so several replicas can share a folder, and one of them dies.
Without these variables, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

POINTS = (
    *("opened", "before_compute", "after_compute", "before_send", "after_send", "before_history", "after_history"),
    *("checkpoint_unit", "checkpoint_list", "checkpoint_rename", "checkpoint_published"),
    *("averaging_card", "averaging_slice", "averaging_reduced", "averaging_voted", "averaging_decided"),
    *("averaging_telling", "averaging_told", "averaging_applying", "averaging_applied"),
    *("training_forward", "training_backward", "training_added"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """Die at `point` of step `step` (-1: any step)."""

    point: str
    step: int

    @classmethod
    def parse(cls, text: str) -> Fault:
        point, _, rest = text.partition(":")
        if point not in POINTS or not (rest == "" or rest.startswith("step=")):
            raise ValueError(f"a fault is POINT[:step=N] with POINT one of {', '.join(POINTS)}, got {text!r}")
        return cls(point, int(rest.removeprefix("step=") or -1))

    def __str__(self) -> str:
        return self.point if self.step == -1 else f"{self.point}:step={self.step}"


_armed = Fault.parse(os.environ["SWARM_FAULT"]) if os.environ.get("SWARM_FAULT") else None
_folder = os.environ.get("SWARM_FAULTS") or None
_is_tested = _armed is not None or _folder is not None


def point(name: str, step: int) -> None:
    """Kill this process, as `kill -9` would, if the environment armed this point and step."""
    if _is_tested and (_armed in (Fault(name, step), Fault(name, -1)) or _is_taken(name, step)):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_taken(name: str, step: int) -> bool:
    """Was there a file for this moment, and did we, and no other process, remove it?"""
    if _folder is None:
        return False
    for fault in (Fault(name, step), Fault(name, -1)):
        try:
            os.unlink(os.path.join(_folder, str(fault)))
        except FileNotFoundError:
            continue
        return True
    return False
