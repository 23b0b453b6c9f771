"""Tapes of an engine: which forwards are worth recording, and which recordings are believed.

A number of tokens that comes for the second time is recorded while it runs. The next time the model's own forward runs beside the tape;
where every bit is the same the tape is believed from then on. Where products are faster another way (`products.py`), the tape that
multiplies so has to be as close as an engine has to be. A model that cannot be recorded is left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from node.serving import products, selftest
from node.serving.recorder import Attending, NotRecordable, Recorder
from node.serving.tape import Tape

log = logging.getLogger(__name__)

MAX_TOKENS = 32
"""Of a forward that is recorded; beyond it products take so long that nothing else counts. Also the most tapes that are kept."""

Forward = Callable[[Attending, Tensor, Tensor], Tensor]
"""The model's own: (who attends, hidden [1, T, H], positions [1, T]) -> [1, T, H]."""


@dataclass(frozen=True, slots=True)
class _Recording:
    """A tape that nobody has proved, and the same with faster products, if there are any."""

    tape: Tape
    quick: Tape | None


class Tapes:
    """Plays a forward where there is a proved tape of it, and runs it where not. All calls come one after the other."""

    def __init__(self, forward: Forward, constants: Iterable[Tensor]) -> None:
        """constants: the model's parameters and buffers; what they hold may change."""
        self.played = 0
        """Forwards that were not run but played."""
        self.refusal: str | None = None
        """Why nothing is recorded any more."""
        self._forward, self._constants = forward, list(constants)
        self._seen: set[int] = set()
        self._recorded: dict[int, _Recording] = {}
        self._proved: dict[int, Tape] = {}

    def forward(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        """As the model's own; attention may be asked twice for the same, and has to answer alike."""
        count = hidden.shape[1]
        if count in self._proved and positions.shape == (1, count):
            self.played += 1
            return self._proved[count].play((hidden, positions), step.attend).contiguous()
        if self.refusal is not None or count > MAX_TOKENS or positions.shape != (1, count):
            return self._forward(step, hidden, positions)
        if count in self._recorded:
            return self._prove(step, hidden, positions)
        if count in self._seen:
            return self._record(step, hidden, positions)
        self._seen.add(count)
        return self._forward(step, hidden, positions)

    def _record(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        recorder = Recorder((hidden, positions), self._constants, step)
        try:
            with recorder.recording():
                output = self._forward(recorder, hidden, positions)
            self._recorded[hidden.shape[1]] = _take(recorder, output)
        except Exception as error:  # whatever it is: the forward is run as it was written, and says what is wrong with it
            self._refuse(error)
            return self._forward(step, hidden, positions)
        return output

    def _prove(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        """On numbers other than those that were recorded."""
        output, inputs = self._forward(step, hidden, positions), (hidden, positions)
        recording = self._recorded.pop(hidden.shape[1])
        try:
            if not torch.equal(output, recording.tape.play(inputs, step.attend)):
                raise NotRecordable("a tape gave other numbers than the model")
        except Exception as error:  # a short way that fails is none
            self._refuse(error)
            return output
        is_close = recording.quick is not None and _is_close(recording.quick, inputs, step, output)
        self._proved[hidden.shape[1]] = recording.quick if recording.quick and is_close else recording.tape
        return output

    def _refuse(self, error: Exception) -> None:
        self.refusal = f"{type(error).__name__}: {error}"
        log.info("forwards are run, not played: %s", self.refusal)
        self._recorded.clear()


def _take(recorder: Recorder, output: Tensor) -> _Recording:
    count = output.shape[1]
    recorder.end(output)
    tape = recorder.tape()
    is_other = recorder.choose_products(lambda weights: products.fastest(weights, count))
    return _Recording(tape, recorder.tape() if is_other else None)


def _is_close(tape: Tape, inputs: tuple[Tensor, Tensor], step: Attending, output: Tensor) -> bool:
    try:
        return selftest.is_close(tape.play(inputs, step.attend), output, inputs[0])
    except RuntimeError as error:  # such as a view that the layout of another product does not allow
        log.info("products are left as the model makes them: %s", error)
        return False
