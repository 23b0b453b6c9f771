"""EngineGraphs of an engine: recorded while nobody waits, proved, and then replayed instead of the model's own forward.

For a number of tokens one forward is captured. Others, with other numbers and with several sequences of unequal lengths, then run both
ways, and the graph is used only if every bit is the same. If other linear kernels are faster (`linear_kernels.py`), the graph that uses
them has to be as close as an engine has to be.
A model that cannot be recorded is left alone.

A graph holds the model's tensors. It sees what is written to them; if one is exchanged, or a module is put in, all graphs are dropped and
the model's own forward runs (`node/units/structure.py`). The next `learn` captures anew; a host whose warm-up is over has to be asked
for it (`Scheduler.warm_up_again`).
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
"""Of a forward that is recorded: with more of them, little is won."""

Example = tuple[Attending, Tensor, Tensor]
"""Arguments of a forward: who attends, hidden states [1, T, H], and positions [1, T] of integers."""

Forward = Callable[[Attending, Tensor, Tensor], Tensor]
"""The model's own: (who attends, hidden, positions) -> [1, T, H]."""

IsClose = Callable[[Tensor, Tensor, Tensor], bool]
"""Is an output as right as an engine has to be? (output, expected, hidden states given)."""


class EngineGraphs:
    """Plays a forward where there is a graph of it, and runs it where not. All calls come one after the other."""

    def __init__(self, forward: Forward, model: nn.Module, is_close: IsClose) -> None:
        """model: whose forward it is; all that it holds may change. is_close: decides about a graph with other linear kernels."""
        self.replayed = 0
        """Forwards that were not run but replayed."""
        self.refusal: str | None = None
        """Why nothing is recorded any more."""
        self._forward, self._model, self._is_close = forward, model, is_close
        self._structure = Structure(model)
        self._graphs: dict[int, CapturedGraph] = {}

    def next_count(self) -> int | None:
        """The number of tokens to `learn` next; None where there is nothing more to learn. Drops graphs of a model that was changed."""
        self._is_current()
        count = len(self._graphs) + 1
        return count if self.refusal is None and count <= MAX_TOKENS else None

    def forward(self, step: Attending, hidden: Tensor, positions: Tensor) -> Tensor:
        """As the model's own."""
        count = hidden.shape[1]
        if count not in self._graphs or positions.shape != (1, count) or not self._is_current():
            return self._forward(step, hidden, positions)
        self.replayed += 1
        return self._graphs[count].replay((hidden, positions), step.attend).contiguous()

    def capture(self, first: Example, *proofs: Example) -> None:
        """Capture the forward of `first`, and prove it on the others, of `next_count` tokens each. Steps are asked several times."""
        try:
            capture = Capture(first[1:], self._structure.tensors, first[0])
            with capture.watching():
                output = self._forward(capture, *first[1:])
            capture.end(output)
            graph, expected = capture.graph(), [self._forward(*proof) for proof in proofs]
            if not all(torch.equal(right, _replay(graph, proof)) for right, proof in zip(expected, proofs, strict=True)):
                raise NotCapturableError("a graph gave other numbers than the model")
        except Exception as error:  # whatever it is: a short kernel that fails is none, and forwards are run as they are written
            self.refusal = f"{type(error).__name__}: {error}"
            log.info("forwards are run, not replayed: %s", self.refusal)
        else:
            self._graphs[output.shape[1]] = _quicker(capture, proofs, expected, self._is_close) or graph

    def _is_current(self) -> bool:
        """Are the graphs of the model as it is? If not, they are dropped, and it may be one that can be captured."""
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
    """The same with faster products; None where there are none, or where they are not close."""
    if not capture.choose_kernels(lambda weights: linear_kernels.fastest(weights, expected[0].shape[1])):
        return None
    try:
        graph = capture.graph()
        are_close = (is_close(_replay(graph, proof), right, proof[1]) for right, proof in zip(expected, proofs, strict=True))
        return graph if all(are_close) else None
    except RuntimeError as error:  # such as a view that the layout of another kernel does not allow
        log.info("products are made as the model makes them: %s", error)
        return None
