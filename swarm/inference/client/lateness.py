"""When a reply counts as late.

By how long the session's steps have taken, what the route announces, and the bytes that must be sent first.
"""

from __future__ import annotations

from collections.abc import Callable

from protocols import tensors
from protocols.defaults import WINDOW_BYTES
from protocols.inference import Route
from swarm.inference.client import suspicion
from swarm.inference.client.outage import Outage
from swarm.inference.client.pending import Pending
from swarm.inference.requests import SessionConfig
from swarm.inference.retained import Retained


class Lateness:
    """The silence of one session, and how long it may last."""

    def __init__(
        self,
        now_s: Callable[[], float],
        expected_ms: Callable[[Route, float], float],
        config: SessionConfig,
        pending: Pending,
    ) -> None:
        """expected_ms: what work worth so many decode steps should take on a route (`Router.expected_ms`)."""
        self.heard_s = 0.0
        """When the last step was sent, the last reply came, or the last route was opened."""
        self._now_s, self._expected_ms, self._config, self._pending = now_s, expected_ms, config, pending
        self.outage = Outage(now_s, pending)
        self._usual_ms = 0.0
        """What a decode step has taken, the longest ones most."""

    @property
    def silent_s(self) -> float:
        """Seconds since `heard_s`."""
        return self._now_s() - self.heard_s

    def begin(self) -> None:
        """The silence begins now."""
        self.heard_s = self._now_s()

    def answered(self, num_tokens: int, is_usual: bool) -> None:
        """The reply to a step of so many tokens came. is_usual: no look was needed; what it took is what such steps take."""
        now_s = self._now_s()
        if is_usual:
            self._usual_ms = max((now_s - self.heard_s) * 1e3 / suspicion.work(num_tokens), 0.9 * self._usual_ms)
        self.heard_s = now_s

    def late_s(self, route: Route, dtype: str | None, replayed: Retained | None) -> float:
        """Seconds after which the reply that is awaited is late. replayed: what a new hop of `route` must compute first."""
        awaited = self._pending.oldest()
        steps = suspicion.work(awaited.num_tokens if awaited else 0)
        expected_ms = max(self._usual_ms * steps, self._expected_ms(route, steps))
        sent_s = awaited.num_bytes / self._config.line_bytes_s if awaited else 0.0
        replay_s = 0.0 if replayed is None else self._replay_s(route, dtype, replayed)
        return suspicion.late_s(expected_ms, self._config.stall_s + sent_s + replay_s)

    def _replay_s(self, route: Route, dtype: str | None, replayed: Retained) -> float:
        """Seconds until a new hop has the first part of the history (from then on it says that it is busy), and has computed all."""
        num_tokens = replayed.num_tokens
        token_bytes = (self._config.hidden_size or 0) * tensors.ITEM_BYTES[dtype or "float32"]
        first_bytes = min(WINDOW_BYTES, max(replayed.num_bytes, num_tokens * token_bytes))
        computed_s = self._expected_ms(route, suspicion.work(num_tokens)) / 1e3
        return min(suspicion.LONGEST_S, first_bytes / self._config.line_bytes_s + computed_s)
