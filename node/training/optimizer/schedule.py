"""The learning rate of a version.

Pure, and the same bits on every machine: `elementwise.py` says why the cosine is our own.
"""

from __future__ import annotations

from node.training.optimizer.elementwise import half_cosine
from protocols.runs import ScheduleSpec


def learning_rate(schedule: ScheduleSpec, lr: float, version: int, steps: int) -> float:
    """The learning rate of the step from `version` to `version` + 1, of a run of `steps` versions whose highest rate is `lr`.

    It rises linearly, from lr / warmup_steps at version 0, to lr at the last version of the warm-up. The last version of the run has
    lr * final_share (constant: lr), and so has every later one.
    """
    done = version + 1
    if done < schedule.warmup_steps:
        return lr * done / schedule.warmup_steps
    return lr * (schedule.final_share + (1 - schedule.final_share) * _height(schedule, min(done, steps), steps))


def _height(schedule: ScheduleSpec, done: int, steps: int) -> float:
    """From 1 at the end of the warm-up to 0 at the end of the run."""
    match schedule.shape:
        case "constant":
            return 1.0
        case "wsd":
            start = max(steps * (1 - schedule.decay_share), schedule.warmup_steps)
            return 1 - _share(done, start, steps)
        case "cosine":
            return half_cosine(_share(done, schedule.warmup_steps, steps))
        case unknown:
            raise AssertionError(f"no such shape of a schedule: {unknown!r}")


def _share(done: int, start: float, stop: int) -> float:
    """How much of [start, stop] is behind us, in [0, 1]."""
    return min(1.0, max(0.0, (done - start) / (stop - start))) if start < stop else float(done > start)
