"""What gateways, nodes and trainers count: names, units, meanings.

docs/operating.md repeats the tables (scripts/docs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import prometheus_client
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets of times."""

STAGE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""The same for parts of a token's time, which are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One of them, by the name under which Prometheus shows it: its last word is the unit."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""

    labels: tuple[str, ...] = ()
    meaning: str
    buckets: tuple[float, ...] = SECONDS
    """Of a histogram."""


# --- of a gateway

REQUESTS = Metric(
    name="murmuration_requests_total", kind="counter", labels=("path", "status"),
    meaning="Requests that have ended, by endpoint and HTTP status; 499: the client hung up before its answer began.",
)  # fmt: skip
PROMPT_TOKENS = Metric(
    name="murmuration_prompt_tokens_total", kind="counter", labels=("model",), meaning="Tokens of prompts that were accepted."
)
CACHED_TOKENS = Metric(
    name="murmuration_cached_prompt_tokens_total", kind="counter", labels=("model",),
    meaning="Of these, tokens that nodes had kept of an earlier request, and did not compute again.",
)  # fmt: skip
ANSWER_TOKENS = Metric(
    name="murmuration_answer_tokens_total", kind="counter", labels=("model",), meaning="Tokens of answers, as they came."
)
FIRST_TOKEN = Metric(
    name="murmuration_first_token_seconds", kind="histogram", labels=("model",),
    meaning="From the headers of a request to its first token, its wait in the queue included.",
)  # fmt: skip
ANSWER_STAGE = Metric(
    name="murmuration_answer_stage_seconds", kind="histogram", labels=("stage", "part"), buckets=STAGE_SECONDS,
    meaning="T1 to T9 of answers that are complete. Of the part `prompt` until the first token; "
    "of the part `token` the mean over all later tokens of an answer.",
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

GATEWAY = (
    REQUESTS, PROMPT_TOKENS, CACHED_TOKENS, ANSWER_TOKENS, FIRST_TOKEN, ANSWER_STAGE, QUEUE, RUNNING, WAITING, SESSIONS, OPEN_MODELS,
)  # fmt: skip


# --- of a node, and of a trainer as far as it has them

STEP_STAGE = Metric(
    name="murmuration_step_stage_seconds", kind="histogram", labels=("stage",), buckets=STAGE_SECONDS,
    meaning="T5 (checked and packed), T6 (queued) and T7 (computed) of each step at this node.",
)  # fmt: skip
STEP_TOKENS = Metric(
    name="murmuration_step_tokens_total", kind="counter", labels=("part",),
    meaning="Tokens that went through this node's blocks, those of sessions that proved something to it included: `prompt`, steps of "
    "more than one token for a sequence; `token`, all others.",
)  # fmt: skip
RECEIVED = Metric(
    name="murmuration_step_received_bytes_total",
    kind="counter",
    meaning="Bytes of the steps' tensors that this node has received.",
)
SENT = Metric(
    name="murmuration_step_sent_bytes_total", kind="counter",
    meaning="Bytes of the steps' tensors that this node has sent, to the next hop or the client (T8).",
)  # fmt: skip
GRADIENT_STAGE = Metric(
    name="murmuration_gradient_stage_seconds", kind="histogram", labels=("stage",), buckets=STAGE_SECONDS,
    meaning="G1 to G9 of training: G4, G5, G7 and G9 at nodes, the others at trainers.",
)  # fmt: skip
NODE_SESSIONS = Metric(name="murmuration_node_sessions", kind="gauge", meaning="Open sessions at this node.")
NODE_KEPT = Metric(
    name="murmuration_node_kept_sessions", kind="gauge",
    meaning="Ended sessions whose keys and values this node keeps, in free memory, for what begins with the same tokens.",
)  # fmt: skip
NODE_WAITING = Metric(name="murmuration_node_waiting_steps", kind="gauge", meaning="Steps in the queue of this node's device.")
NODE_FREE = Metric(
    name="murmuration_node_free_bytes", kind="gauge", meaning="Memory of the device that keys and values may still take."
)
NODE_USED = Metric(name="murmuration_node_used_bytes", kind="gauge", meaning="Memory of the device that keys and values take.")
NODE_BLOCKS = Metric(name="murmuration_node_hosted_blocks", kind="gauge", meaning="Blocks that this node serves.")
NODE_PEERS = Metric(name="murmuration_node_neighbour_peers", kind="gauge", meaning="Neighbours in the DHT.")

PEER = (
    STEP_STAGE, STEP_TOKENS, RECEIVED, SENT, GRADIENT_STAGE, NODE_SESSIONS, NODE_KEPT, NODE_WAITING, NODE_FREE, NODE_USED, NODE_BLOCKS,
    NODE_PEERS,
)  # fmt: skip

TRAINER = (GRADIENT_STAGE,)

ALL = (*GATEWAY, *PEER)


class Metrics:
    """The counts of one process, or of one part of it."""

    content_type = prometheus_client.CONTENT_TYPE_LATEST

    def __init__(self, declared: Sequence[Metric] = GATEWAY) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, MetricWrapperBase] = {one.name: self._make(one) for one in declared}
        self._labelled: dict[tuple[object, ...], MetricWrapperBase] = {}
        """With values of its labels: to find one costs as much as to count."""

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
        return prometheus_client.generate_latest(self.registry)

    def _of(self, metric: Metric, labels: dict[str, str]) -> MetricWrapperBase:
        if not labels:
            return self._made[metric.name]
        key = (metric.name, *labels.items())
        if (made := self._labelled.get(key)) is None:
            made = self._labelled[key] = self._made[metric.name].labels(**labels)
        return made

    def _make(self, metric: Metric) -> MetricWrapperBase:
        name, meaning, labels, registry = metric.name, metric.meaning, metric.labels, self.registry
        if metric.kind == "counter":
            return prometheus_client.Counter(name, meaning, labels, registry=registry)
        if metric.kind == "gauge":
            return prometheus_client.Gauge(name, meaning, labels, registry=registry)
        return prometheus_client.Histogram(name, meaning, labels, registry=registry, buckets=metric.buckets)


def table(declared: Sequence[Metric]) -> str:
    """Markdown: one table row per metric."""
    lines = [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.meaning} |" for one in declared
    ]
    return "| name | kind | labels | meaning |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
