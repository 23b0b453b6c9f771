"""Who follows a session's steps over all hops.

A step's frame takes a trace context along (`protocols.inference.Step.trace`), so that every hop's span belongs to the client's trace. Who
makes and exports spans is not known here: `node/telemetry.py`.
"""

from __future__ import annotations

from typing import Protocol

from swarm.timings import StepTime


class StepTracer(Protocol):
    """Of one session, whose steps follow each other."""

    def begin(self) -> bytes:
        """A step begins; the context that its frames take along, empty if this trace is not kept."""
        ...

    def end(self, time: StepTime | None) -> None:
        """It has ended; None: it failed."""
        ...


class NoTracer:
    """No trace is kept."""

    def begin(self) -> bytes:
        return b""

    def end(self, time: StepTime | None) -> None:
        return


OFF = NoTracer()
