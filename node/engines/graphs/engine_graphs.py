"""The captured graphs of an engine: captured, checked, then replayed.

For each number of tokens one forward is captured. Forwards with other numbers, one of them of several sequences of unequal lengths, then
run both ways, and the graph is used only if every bit is the same. If other linear kernels are faster (`linear_kernels.py`), the graph that
uses them has to be as close as an engine has to be. If a model's forward cannot be captured, it runs as it is written.

A graph holds the model's tensors, so it sees what is written to them. If one is exchanged, or a module is put in, all graphs are dropped
and the model's own forward runs (`node/units/structure.py`). The next `capture` starts anew; if a host's warm-up is over, it starts again
after `Scheduler.warm_up_again`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from node.engines.graphs import linear_kernels
from node.engines.graphs.capture import Attending, Capture, NotCapturableError
from node.engines.graphs.graph import CapturedGraph
from node.units.structure import Structure
from protocols.words import counted

log = logging.getLogger(__name__)

MAX_TOKENS = 16
"""Tokens of the largest forward that is captured: with more tokens, a replay gains little."""

Example = tuple[Attending, Tensor, Tensor]
"""Arguments of a forward: the step that attends, hidden states [1, T, H], and positions [1, T] of integers."""

Forward = Callable[[Attending, Tensor, Tensor], Tensor]
"""The model's own forward: (step that attends, hidden states, positions) -> [1, T, H]."""

IsClose = Callable[[Tensor, Tensor, Tensor], bool]
"""Is an output as right as an engine has to be? (output, expected, hidden states given)."""


class EngineGraphs:
    """Replays the graph of a forward if there is one, else runs the forward. Not thread-safe: one call at a time."""

    def __init__(self, forward: Forward, model: nn.Module, is_close: IsClose) -> None:
        """model: the owner of `forward`; anything in it may change later. is_close: accepts a graph with other linear kernels, or not."""
        self.replayed = 0
        """Forwards that were replayed so far."""
        self.refusal: str | None = None
        """Why nothing is captured any more; None if captures go on, or are complete."""
        self._forward, self._model, self._is_close = forward, model, is_close
        self._structure = Structure(model)
        self._graphs: dict[int, CapturedGraph] = {}

    def next_count(self) -> int | None:
        """The number of tokens to `capture` next; None if there is nothing more to capture. Drops all graphs if the model was changed."""
        self._is_current()
        count = len(self._graphs) + 1
        return count if self.refusal is None and count <= MAX_TOKENS else None

    def forward(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        """Same arguments, result and errors as the model's own forward; the result is contiguous."""
        count = hidden.shape[1]
        if count not in self._graphs or positions.shape != (1, count) or not self._is_current():
            return self._forward(step, hidden, positions)
        self.replayed += 1
        return self._graphs[count].replay((hidden, positions), step.attend).contiguous()

    def capture(self, first: Example, *proofs: Example) -> None:
        """Capture the forward of `first`, and check the graph on `proofs`, all of `next_count` tokens. Each step attends several times.

        A failure sets `refusal`, adds no graph and raises nothing.
        """
        try:
            capture = Capture(first[1:], self._structure.tensors, first[0])
            with capture.watching():
                output = self._forward(capture, *first[1:])
            capture.end(output)
            graph, expected = capture.graph(), [self._forward(*proof) for proof in proofs]
            if not all(torch.equal(right, _replay(graph, proof)) for right, proof in zip(expected, proofs, strict=True)):
                raise NotCapturableError("a graph gave other numbers than the model")
        except Exception as error:  # of any class: the model's own forward is still right, so it runs
            self.refusal = f"{type(error).__name__}: {error}"
            log.info("forwards are not captured: %s", self.refusal)
        else:
            self._graphs[output.shape[1]] = _quicker(capture, proofs, expected, self._is_close) or graph

    def _is_current(self) -> bool:
        """Is the model as it was when captured? If not, drop all graphs and the refusal: the changed model may be capturable."""
        if self._structure.is_current():
            return True
        if self._graphs:
            log.info("the model was changed: %s dropped", counted(len(self._graphs), "captured graph"))
        self._structure, self._graphs, self.refusal = Structure(self._model), {}, None
        return False


def _replay(graph: CapturedGraph, example: Example) -> Tensor:
    step, *inputs = example
    return graph.replay(inputs, step.attend)


def _quicker(capture: Capture, proofs: Sequence[Example], expected: Sequence[Tensor], is_close: IsClose) -> CapturedGraph | None:
    """The same graph with faster linear kernels; None if no kernel is faster, or if the results are not close."""
    try:
        if not capture.choose_kernels(lambda weights: linear_kernels.fastest(weights, expected[0].shape[1])):
            return None
        graph = capture.graph()
        are_close = (is_close(_replay(graph, proof), right, proof[1]) for right, proof in zip(expected, proofs, strict=True))
        return graph if all(are_close) else None
    except (
        Exception
    ) as error:  # of any class, such as a view that the layout of another kernel does not allow: the proven graph stays
        log.info("the model's own linear kernels stay: %s", error)
        return None
