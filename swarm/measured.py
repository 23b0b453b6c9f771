"""What this process measures of its work, for metrics and traces.

Parts say what a stage took (`T5` to `T7` of a step here, `G1` to `G9` of a training step); listeners are told. Without a listener, which
is the rule, that costs a look at an empty tuple.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from protocols.inference import Step
from protocols.timings import HopTime

GRADIENT_STAGES = {
    "G1": "drew a micro-batch (trainer)",
    "G2": "chose its stages, or waited for some (trainer)",
    "G3": "its hidden states and gradients crossed the network (trainer)",
    "G4": "queued for the stage's device",
    "G5": "forward and backward at the stage",
    "G6": "from the begin of a version to its last micro-batch (the trainer that hands them out)",
    "G7": "replicas agreed on a sum",
    "G8": "told all members to step, until they had (the trainer that hands out)",
    "G9": "stepped the optimizer",
}
"""What the time of a training step is spent with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopStep:
    """A step that has been computed here and goes on."""

    step: Step
    """As it came."""
    spent: HopTime
    sent_bytes: int
    """Of its output."""

    @property
    def num_tokens(self) -> int:
        return sum(self.step.counts)


class Listener(Protocol):
    """Called from any thread, so it must be quick."""

    def hop_step(self, done: HopStep) -> None: ...

    def gradient(self, stage: str, seconds: float) -> None:
        """stage: one of GRADIENT_STAGES."""
        ...


_listeners: tuple[Listener, ...] = ()


def listen(listener: Listener) -> Callable[[], None]:
    """Tell the listener from now on; call what is returned to end that."""
    global _listeners
    _listeners = (*_listeners, listener)
    return lambda: _leave(listener)


def _leave(listener: Listener) -> None:
    global _listeners
    _listeners = tuple(one for one in _listeners if one is not listener)


def hop_step(step: Step, spent: HopTime, sent_bytes: int) -> None:
    """A step has been computed here."""
    if _listeners:
        done = HopStep(step=step, spent=spent, sent_bytes=sent_bytes)
        for listener in _listeners:
            listener.hop_step(done)


def gradient(stage: str, seconds: float) -> None:
    """A stage of a training step took so long."""
    for listener in _listeners:
        listener.gradient(stage, seconds)


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """`gradient`, of the block, if it does not raise."""
    began = time.perf_counter()
    yield
    gradient(stage, time.perf_counter() - began)
