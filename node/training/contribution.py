"""What one machine has given to a run since its start."""

from __future__ import annotations

from node.training.amounts import duration
from protocols.about import Trained
from protocols.ids import ModelId
from protocols.words import counted
from swarm.clock import SYSTEM, Clock


class Contribution:
    """Counts; the hours are those in which the node took micro-batches. All methods belong to one event loop."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self.num_micro_batches = self.num_tokens = self.num_versions = 0
        self._clock, self._before_s = clock, 0.0
        self._since_s: float | None = clock.now_s()
        self._version: int | None = None
        self._told = 0, 0

    def add(self, num_tokens: int) -> None:
        """One micro-batch of so many tokens is in our sums."""
        self.num_micro_batches += 1
        self.num_tokens += num_tokens

    def stepped(self, version: int) -> None:
        """Our units have stepped to this version; several calls for one version count once."""
        if version != self._version:
            self._version = version
            self.num_versions += 1

    def pause(self, is_paused: bool) -> None:
        """Stop counting the hours, or go on."""
        if is_paused is (self._since_s is None):
            return
        self._before_s, self._since_s = self.seconds, None if is_paused else self._clock.now_s()

    def news(self) -> str:
        """All that was done, as a line; "" if nothing came to it since this was called last."""
        before, self._told = self._told, (self.num_micro_batches, self.num_versions)
        return str(self) if self._told != before else ""

    def as_trained(self, run: ModelId, role: str) -> Trained:
        """As others are told it."""
        return Trained(
            run=run, role=role, num_micro_batches=self.num_micro_batches, num_tokens=self.num_tokens,
            num_versions=self.num_versions, seconds=self.seconds,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        return self._before_s + (0.0 if self._since_s is None else self._clock.now_s() - self._since_s)

    def __str__(self) -> str:
        """`1,204 micro-batches, 1,232,896 tokens, 96 versions in 2 h 18 min`."""
        numbers = (self.num_micro_batches, "micro-batch"), (self.num_tokens, "token"), (self.num_versions, "version")
        return f"{', '.join(counted(*one, is_grouped=True) for one in numbers)} in {duration(self.seconds)}"
