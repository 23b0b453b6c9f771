"""The metrics of a node or trainer, and their page for Prometheus.

with measuring(("127.0.0.1", 9400), on_event) as measures: ...       # http://127.0.0.1:9400/metrics
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from node import metrics, metrics_page
from node.config import Address
from node.events import Event, OnEvent
from node.metrics import PEER, Metric, Metrics
from protocols.errors import ConfigError
from swarm import measured
from swarm.measured import HopStep


class Measures:
    """Counts what this process does; a `measured.Listener`."""

    def __init__(self, declared: Sequence[Metric]) -> None:
        self.metrics = Metrics(declared)

    def hop_step(self, done: HopStep) -> None:
        spent, counts = done.spent, self.metrics
        for stage, ms in (("T5", spent.check_ms), ("T6", spent.queue_ms), ("T7", spent.compute_ms)):
            counts.took(metrics.STEP_STAGE, ms / 1e3, stage=stage)
        part = "prompt" if max(done.step.counts, default=0) > 1 else "token"
        counts.count(metrics.STEP_TOKENS, done.num_tokens, part=part)
        counts.count(metrics.RECEIVED, done.step.payload.num_bytes)
        counts.count(metrics.SENT, done.sent_bytes)

    def gradient(self, stage: str, seconds: float) -> None:
        self.metrics.took(metrics.GRADIENT_STAGE, seconds, stage=stage)


@contextlib.contextmanager
def measuring(address: Address | None, on_event: OnEvent, declared: Sequence[Metric] = PEER) -> Iterator[Measures | None]:
    """Count until the block ends, and answer Prometheus at `address`; None: do nothing. ConfigError if it is not free."""
    if address is None:
        yield None
        return
    measures = Measures(declared)
    with contextlib.ExitStack() as open_ones:
        try:
            url = open_ones.enter_context(metrics_page.served(measures.metrics.registry, address))
        except OSError as error:
            host, port = address
            raise ConfigError(
                f"--metrics: cannot listen on {host} port {port}: {error.strerror}; choose another one (0 = a free one)"
            ) from None
        on_event(Event("metrics", url))
        open_ones.callback(measured.listen(measures))
        yield measures
