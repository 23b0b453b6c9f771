"""What the gateway counts, for Prometheus: names, units, meanings.

docs/gateway.md repeats the table (scripts/docs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One of them, by the name under which Prometheus shows it: its last word is the unit."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""

    labels: tuple[str, ...] = ()
    meaning: str


REQUESTS = Metric(
    name="murmuration_requests_total", kind="counter", labels=("path", "status"),
    meaning="Requests that have ended, by endpoint and HTTP status; 499: the client hung up before its answer began.",
)  # fmt: skip
PROMPT_TOKENS = Metric(
    name="murmuration_prompt_tokens_total", kind="counter", labels=("model",), meaning="Tokens of prompts that were accepted."
)
ANSWER_TOKENS = Metric(
    name="murmuration_answer_tokens_total", kind="counter", labels=("model",), meaning="Tokens of answers, as they came."
)
FIRST_TOKEN = Metric(
    name="murmuration_first_token_seconds", kind="histogram", labels=("model",),
    meaning="From the headers of a request to its first token, its wait in the queue included.",
)  # fmt: skip
QUEUE = Metric(
    name="murmuration_queue_seconds", kind="histogram", meaning="How long requests waited for a place; 0 if one was free."
)
RUNNING = Metric(name="murmuration_running_requests", kind="gauge", meaning="Requests that have a place and are being answered.")
WAITING = Metric(name="murmuration_waiting_requests", kind="gauge", meaning="Requests in the queue for a place.")
SESSIONS = Metric(
    name="murmuration_open_sessions", kind="gauge", labels=("model",),
    meaning="Sessions that the gateway holds at the nodes: one for each answer that is being made.",
)  # fmt: skip
OPEN_MODELS = Metric(name="murmuration_open_models", kind="gauge", meaning="Models that are open.")

ALL = (REQUESTS, PROMPT_TOKENS, ANSWER_TOKENS, FIRST_TOKEN, QUEUE, RUNNING, WAITING, SESSIONS, OPEN_MODELS)


class Metrics:
    """The counts of one gateway."""

    content_type = prometheus_client.CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._made: dict[str, MetricWrapperBase] = {one.name: self._make(one) for one in ALL}

    def count(self, metric: Metric, amount: float = 1, **labels: str) -> None:
        """Add to a counter, or to a gauge (where `amount` may be negative)."""
        made = self._of(metric, labels)
        assert isinstance(made, prometheus_client.Counter | prometheus_client.Gauge)
        made.inc(amount)

    def took(self, metric: Metric, seconds: float, **labels: str) -> None:
        """One more value of a histogram."""
        made = self._of(metric, labels)
        assert isinstance(made, prometheus_client.Histogram)
        made.observe(seconds)

    def read_from(self, metric: Metric, value: Callable[[], float]) -> None:
        """A gauge whose value is asked for when the metrics are read."""
        made = self._made[metric.name]
        assert isinstance(made, prometheus_client.Gauge)
        made.set_function(value)

    def text(self) -> bytes:
        """All, in Prometheus' text form."""
        return prometheus_client.generate_latest(self._registry)

    def _of(self, metric: Metric, labels: dict[str, str]) -> MetricWrapperBase:
        made = self._made[metric.name]
        return made.labels(**labels) if labels else made

    def _make(self, metric: Metric) -> MetricWrapperBase:
        name, meaning, labels, registry = metric.name, metric.meaning, metric.labels, self._registry
        if metric.kind == "counter":
            return prometheus_client.Counter(name, meaning, labels, registry=registry)
        if metric.kind == "gauge":
            return prometheus_client.Gauge(name, meaning, labels, registry=registry)
        return prometheus_client.Histogram(name, meaning, labels, registry=registry, buckets=SECONDS)


def table() -> str:
    """Markdown: one table row per metric."""
    lines = [f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |" for one in ALL]
    return "| name | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
