"""How many micro-batches are under way at once.

The slowest stage never waits for work if, during one micro-batch's own way (all its computing and travelling, without its waits for busy
devices), so many are under way as that stage computes in this time (Little 1961, "A proof for the queuing formula L = λW"). One more for
each stage waits there, since no two of them take equally long. If stages are equally fast and the network takes no time, that is two for
each stage, which is the least in any case.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from protocols.receipts import Receipt

NUM_KEPT = 64
"""Past micro-batches that count."""

MOST = 24
"""For each pipeline: a stage takes no more than 32 of one caller (`node/training/pass_limits.py`), and each keeps memory at every stage."""


LEAST_MS = 1e-3
"""A hop that computed for less is not believed: by a quotient with nearly nothing the window would be infinite."""


class Window:
    """Of one trainer, by what its own micro-batches took. The hops' words can only lower it to two for each stage, or raise it to MOST."""

    def __init__(self) -> None:
        self._own_s, self._slowest_s = deque[float](maxlen=NUM_KEPT), deque[float](maxlen=NUM_KEPT)

    def add(self, seconds: float, receipts: Sequence[Receipt]) -> None:
        """One more came back after so long."""
        slowest_ms = max((receipt.forward_ms + receipt.backward_ms for receipt in receipts), default=0.0)
        if slowest_ms >= LEAST_MS:
            self._own_s.append(max(0.0, seconds - sum(receipt.queue_ms for receipt in receipts) / 1e3))
            self._slowest_s.append(slowest_ms / 1e3)

    def size(self, num_stages: int, num_pipelines: float, batch: int) -> int:
        """num_pipelines: how often the stages host the whole model. batch: micro-batches of a version, which trainers share evenly."""
        if not self._own_s:
            return max(2, 2 * num_stages)
        # the shortest way: on a link that is full the others are longer the more are under way
        per_pipeline = min(self._own_s) / median(self._slowest_s)
        wanted = num_stages + math.ceil(num_pipelines * per_pipeline - 1e-9)
        return max(2, 2 * num_stages, min(wanted, math.ceil(MOST * num_pipelines), batch))
