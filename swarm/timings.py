"""How long each part of a request took: T1 to T9.

`docs/architecture.md` has the nine parts. T1 to T3 are once for each request; T4 to T9 are added up over its steps, the first of which is
that of the prompt. T5 to T7 are what the hops say (`protocols/timings.py`); T8 is what is left of the time in which the client waited.
If prefill chunks of a long prompt overlap at several hops, the hops' times add up to more than passed, and T8 is 0.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from protocols.ids import PeerId
from protocols.inference import Route
from protocols.timings import HopTime

STAGES = {
    "T1": "waited for a place at the gateway",
    "T2": "tokenized the prompt",
    "T3": "found and opened a route",
    "T4": "framed the steps",
    "T5": "checked and packed at the hops",
    "T6": "queued for the hops' devices",
    "T7": "computed at the hops",
    "T8": "crossed the network",
    "T9": "picked tokens and turned them into text",
}
"""What a request's time is spent with, in the order of a token's path."""

WORDS = {"T3": "route", "T4": "frame", "T5": "check", "T6": "queue", "T7": "compute", "T8": "network"}
"""In a line for a person: those parts that every client has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """One step, as its client saw it."""

    route: Route
    hops: Sequence[HopTime]
    """Of each prefill chunk; empty if the hops have not said it."""
    num_tokens: int
    route_ms: float = 0.0
    """0 if there was a route already."""
    frame_ms: float
    wait_ms: float
    """From the first frame until the last reply."""
    sent_bytes: int
    received_bytes: int


@dataclass(slots=True)
class StepsTime:
    """Some steps, added up."""

    num_steps: int = 0
    num_tokens: int = 0
    frame_ms: float = 0.0
    check_ms: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    network_ms: float = 0.0
    pick_ms: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0

    def add(self, step: StepTime) -> None:
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        self.frame_ms += step.frame_ms
        for hop in step.hops:
            self.check_ms += hop.check_ms
            self.queue_ms += hop.queue_ms
            self.compute_ms += hop.compute_ms
        self.network_ms += max(0.0, step.wait_ms - sum([hop.total_ms for hop in step.hops]))
        self.sent_bytes += step.sent_bytes
        self.received_bytes += step.received_bytes

    def stages(self) -> dict[str, float]:
        """T4 to T9, in milliseconds."""
        values = (self.frame_ms, self.check_ms, self.queue_ms, self.compute_ms, self.network_ms, self.pick_ms)
        return dict(zip(list(STAGES)[3:], values, strict=True))

    def as_json(self) -> dict[str, float]:
        numbers = {"steps": self.num_steps, "tokens": self.num_tokens, "sent_bytes": self.sent_bytes,
                   "received_bytes": self.received_bytes}  # fmt: skip
        return {**numbers, **_rounded(self.stages())}


@dataclass(slots=True)
class HopShare:
    """What one hop has done for a request."""

    peer: PeerId
    blocks: str
    num_steps: int = 0
    check_ms: float = 0.0
    queue_ms: float = 0.0
    compute_ms: float = 0.0

    def add(self, hop: HopTime) -> None:
        self.num_steps += 1
        self.check_ms += hop.check_ms
        self.queue_ms += hop.queue_ms
        self.compute_ms += hop.compute_ms

    def as_json(self) -> dict[str, object]:
        spent = {"T5": self.check_ms, "T6": self.queue_ms, "T7": self.compute_ms}
        return {"peer": self.peer, "blocks": self.blocks, "steps": self.num_steps, **_rounded(spent)}


@dataclass(slots=True)
class Timings:
    """Of one answer; `add` each step in its order."""

    wait_ms: float = 0.0
    tokenize_ms: float = 0.0
    route_ms: float = 0.0
    prompt: StepsTime = field(default_factory=StepsTime)
    """The first step."""
    later: StepsTime = field(default_factory=StepsTime)
    """All others: a token each, or a guess of several."""
    hops: dict[tuple[PeerId, str], HopShare] = field(default_factory=dict)
    """In the order in which they came; one that was replaced stays."""

    def add(self, step: StepTime) -> None:
        self.route_ms += step.route_ms
        (self.later if self.prompt.num_steps else self.prompt).add(step)
        for hop in step.hops:
            at = step.route[hop.index]
            key = at.peer, str(at.unit)
            self.hops.setdefault(key, HopShare(*key)).add(hop)

    def picked(self, seconds: float) -> None:
        """So long it took to pick a token of the last step, or to turn it into text."""
        (self.later if self.later.num_steps else self.prompt).pick_ms += seconds * 1e3

    @contextmanager
    def picking(self) -> Iterator[None]:
        """`picked`, of the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.picked(time.perf_counter() - began)

    def stages(self) -> dict[str, float]:
        """T1 to T9 of the whole answer, in milliseconds."""
        once = dict(zip(list(STAGES)[:3], (self.wait_ms, self.tokenize_ms, self.route_ms), strict=True))
        later = self.later.stages()
        return {**once, **{name: ms + later[name] for name, ms in self.prompt.stages().items()}}

    def as_json(self) -> dict[str, object]:
        """T1 to T9 in milliseconds; T4 to T9 for the prompt and for all later steps, T5 to T7 for each hop."""
        once = {name: ms for name, ms in self.stages().items() if name <= "T3"}
        hops = [hop.as_json() for hop in self.hops.values()]
        return {**_rounded(once), "prompt": self.prompt.as_json(), "later": self.later.as_json(), "hops": hops}

    def told(self) -> str:
        """One line for a person: T3 to T8 of the first token, and the mean of each later one."""
        first = {"T3": self.route_ms, **self.prompt.stages()}
        parts = [f"ms of the first token: {_told(first)}"]
        if number := self.later.num_steps:
            parts.append(f"of each later step: {_told({name: ms / number for name, ms in self.later.stages().items()})}")
        return "; ".join(parts)

    def server_timing(self) -> str:
        """A value of the HTTP header `Server-Timing`. Source: https://www.w3.org/TR/server-timing/"""
        return ", ".join(f'{name};dur={ms:.3f};desc="{STAGES[name]}"' for name, ms in self.stages().items())


def _told(spent: dict[str, float]) -> str:
    return ", ".join(f"{WORDS[name]} {ms:.2f}" for name, ms in spent.items() if name in WORDS)


def _rounded(spent: dict[str, float]) -> dict[str, float]:
    return {name: round(ms, 3) for name, ms in spent.items()}
