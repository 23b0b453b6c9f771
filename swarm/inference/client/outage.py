"""How long lost hops keep a session from its next reply."""

from __future__ import annotations

from collections.abc import Callable

from swarm.inference.client.pending import Pending


class Outage:
    """Begins with the first loss since a reply, and ends with the next reply."""

    def __init__(self, now_s: Callable[[], float], pending: Pending) -> None:
        self.since_s: float | None = None
        """When a hop was lost first since the last reply; None = none was."""
        self.pauses_s: list[float] = []
        """How long each one took that is over."""
        self._now_s, self._pending = now_s, pending

    def lost(self) -> float:
        """A hop is lost: the seconds since the first loss for which a caller waits; until one waits, the route timeout does not run."""
        now_s = self._now_s()
        if self.since_s is None or not self._pending.steps:
            self.since_s = now_s
        return now_s - self.since_s

    def end(self) -> None:
        """A reply came."""
        if self.since_s is not None:
            self.pauses_s.append(self._now_s() - self.since_s)
            self.since_s = None
