"""What one request uses, counted as it happens."""

from __future__ import annotations

import math

from node import metrics
from node.gateway.callers.accounts import Account
from node.metrics import Metrics
from swarm.timings import Timings


class Meter:
    """Counts for the caller's budget and for the gateway's metrics."""

    def __init__(self, account: Account, counts: Metrics, max_seconds: float = math.inf) -> None:
        """max_seconds: limit of the time from now until its answers end."""
        self.account, self._counts, self._max_seconds = account, counts, max_seconds
        self._began_s = account.clock.now_s()
        self._has_token = False
        self.wait_s = 0.0
        """Seconds that the request was in the queue."""

    def waited(self, seconds: float) -> None:
        """The request has left the queue after so many seconds."""
        self.wait_s = seconds
        self._counts.took(metrics.QUEUE, seconds)

    def prompt(self, model: str, num_tokens: int) -> None:
        """A prompt is about to be computed; RefusedError (429) if they are beyond the budget."""
        self.account.take_prompt(num_tokens)
        self._counts.count(metrics.PROMPT_TOKENS, num_tokens, model=model)

    def cached(self, model: str, num_tokens: int) -> None:
        """Hops had kept so many tokens of a prompt, which were not computed again."""
        if num_tokens:
            self._counts.count(metrics.CACHED_TOKENS, num_tokens, model=model)

    def token(self, model: str) -> bool:
        """One more token of an answer has come. Returns whether the budget and the time allow another one."""
        spent_s = self.account.clock.now_s() - self._began_s
        if not self._has_token:
            self._has_token = True
            self._counts.took(metrics.FIRST_TOKEN, spent_s, model=model)
        self._counts.count(metrics.ANSWER_TOKENS, model=model)
        return self.account.add_token() and spent_s < self._max_seconds

    def session_began(self, model: str) -> None:
        """A session of this request begins at the nodes."""
        self._counts.count(metrics.SESSIONS, 1, model=model)

    def session_ended(self, model: str) -> None:
        """A session of this request has ended."""
        self._counts.count(metrics.SESSIONS, -1, model=model)

    def answered(self, timings: Timings) -> None:
        """An answer is complete."""
        once = {"T1": timings.wait_ms, "T2": timings.tokenize_ms, "T3": timings.route_ms}
        for stage, ms in {**once, **timings.prompt.stages()}.items():
            self._counts.took(metrics.ANSWER_STAGE, ms / 1e3, stage=stage, part="prompt")
        if num_steps := timings.later.num_steps:
            for stage, ms in timings.later.stages().items():
                self._counts.took(metrics.ANSWER_STAGE, ms / 1e3 / num_steps, stage=stage, part="token")
