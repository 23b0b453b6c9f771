"""Tapes of an engine: recorded while nobody waits, proved, and then played instead of the model's own forward.

For a number of tokens one forward is recorded; the next runs both ways, on other numbers, and the tape is believed where every bit is the
same. Where products are faster another way (`products.py`), the tape that multiplies so has to be as close as an engine has to be.
A model that cannot be recorded is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from node.serving import products, selftest
from node.serving.recorder import Attending, NotRecordable, Recorder
from node.serving.tape import Tape

log = logging.getLogger(__name__)

MAX_TOKENS = 16
"""Of a forward that is recorded: with more of them, little is won."""

Inputs = tuple[Tensor, Tensor]
"""Hidden states [1, T, H], and positions [1, T] of integers."""

Forward = Callable[[Attending, Tensor, Tensor], Tensor]
"""The model's own: (who attends, hidden, positions) -> [1, T, H]."""


class Tapes:
    """Plays a forward where there is a tape of it, and runs it where not. All calls come one after the other."""

    def __init__(self, forward: Forward, constants: Iterable[Tensor]) -> None:
        """constants: the model's parameters and buffers; what they hold may change."""
        self.played = 0
        """Forwards that were not run but played."""
        self.refusal: str | None = None
        """Why nothing is recorded any more."""
        self._forward, self._constants = forward, list(constants)
        self._tapes: dict[int, Tape] = {}

    @property
    def next_count(self) -> int | None:
        """The number of tokens to `learn` next; None where there is nothing more to learn."""
        count = len(self._tapes) + 1
        return count if self.refusal is None and count <= MAX_TOKENS else None

    def forward(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        """As the model's own."""
        count = hidden.shape[1]
        if count not in self._tapes or positions.shape != (1, count):
            return self._forward(step, hidden, positions)
        self.played += 1
        return self._tapes[count].play((hidden, positions), step.attend).contiguous()

    def learn(self, step: Attending, first: Inputs, second: Inputs) -> None:
        """Record the forward of `first`, and prove it on `second`. `step` is asked for each attention several times."""
        try:
            recorder = Recorder(first, self._constants, step)
            with recorder.recording():
                output = self._forward(recorder, *first)
            recorder.end(output)
            tape, expected = recorder.tape(), self._forward(step, *second)
            if not torch.equal(expected, tape.play(second, step.attend)):
                raise NotRecordable("a tape gave other numbers than the model")
        except Exception as error:  # whatever it is: a short way that fails is none, and forwards are run as they are written
            self.refusal = f"{type(error).__name__}: {error}"
            log.info("forwards are run, not played: %s", self.refusal)
        else:
            self._tapes[expected.shape[1]] = _quicker(recorder, step, second, expected) or tape


def _quicker(recorder: Recorder, step: Attending, inputs: Inputs, expected: Tensor) -> Tape | None:
    """The same with faster products; None where there are none, or where they are not close."""
    if not recorder.choose_products(lambda weights: products.fastest(weights, expected.shape[1])):
        return None
    try:
        tape = recorder.tape()
        return tape if selftest.is_close(tape.play(inputs, step.attend), expected, inputs[0]) else None
    except RuntimeError as error:  # such as a view that the layout of another product does not allow
        log.info("products are made as the model makes them: %s", error)
        return None
