"""What a gateway tells of a request to its keeper of traces.

`node/telemetry.py` keeps them with OpenTelemetry; OFF is the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from swarm.timings import Timings
from swarm.tracing import NoTracer, StepTracer


class AnswerTrace(StepTracer, Protocol):
    """Of one answer, and of the steps of its session."""

    def close(self, timings: Timings) -> None:
        """The answer has ended, also if it failed."""
        ...


class RequestTrace(Protocol):
    def told(self, **attributes: str | int) -> None:
        """More of the request, by OpenTelemetry's names, with two `_` for a dot."""
        ...

    def answer(self, choice: int) -> AnswerTrace:
        """One answer begins."""
        ...


class Traces(Protocol):
    """Of one gateway."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        """A request, until the block ends. headers: as they came."""
        ...

    def flush(self) -> None:
        """Send what waits; blocks for a short time at most."""
        ...


class NoTrace(NoTracer):
    """No trace is kept, of a request or of an answer."""

    def told(self, **attributes: str | int) -> None:
        return

    def answer(self, choice: int) -> AnswerTrace:
        return self

    def close(self, timings: Timings) -> None:
        return


NO_TRACE = NoTrace()


class NoTraces:
    """Of a gateway that keeps none."""

    def request(self, name: str, headers: Mapping[str, str]) -> AbstractContextManager[RequestTrace]:
        return nullcontext(NO_TRACE)

    def flush(self) -> None:
        return


OFF = NoTraces()
