"""Spans of hops and requests, and contexts that others have made up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from node.telemetry import Telemetry, parent_of
from protocols.timings import HopTime
from swarm.measured import HopStep
from swarm.timings import Timings
from tests.protocols.samples import SAMPLES

STEP = SAMPLES["step with times"]
SPENT = HopTime(index=3, queue_ms=5.0, compute_ms=20.0, total_ms=30.0)


class Kept(InMemorySpanExporter):
    """What has been exported, after the end."""

    def __init__(self) -> None:
        super().__init__()
        self.telemetry = Telemetry(self, "node", "attic")

    def ended(self) -> tuple[ReadableSpan, ...]:
        self.telemetry.close()
        return self.get_finished_spans()


@pytest.fixture
def kept() -> Iterator[Kept]:
    exporter = Kept()
    yield exporter
    exporter.telemetry.close()


def test_a_hop_s_span_ends_now_and_has_begun_as_long_ago_as_it_took(kept: Kept) -> None:
    before_ns = time.time_ns()
    kept.telemetry.hop_step(HopStep(step=STEP, spent=SPENT, sent_bytes=8))
    (span,) = kept.ended()
    assert span.parent is not None and span.context is not None and span.end_time is not None and span.start_time is not None
    assert span.context.trace_id == span.parent.trace_id == int.from_bytes(bytes(range(1, 17)), "big")
    assert span.parent.span_id == int.from_bytes(bytes(range(17, 25)), "big")
    assert span.end_time >= before_ns and span.end_time - span.start_time == 30_000_000
    assert dict(span.attributes or {})["murmuration.queue_ms"] == 5.0
    assert span.resource.attributes["service.instance.id"] == "attic"


@pytest.mark.parametrize(
    "context",
    [
        b"",
        bytes(25),
        bytes(16) + bytes(range(9)),
        bytes(range(16)) + bytes(8) + b"\x01",
        bytes(range(16)) + bytes(range(8)) + b"\x00",
    ],
    ids=["none", "zeros", "no trace", "no span", "not sampled"],
)
def test_without_a_trace_that_is_kept_a_hop_makes_no_span(kept: Kept, context: bytes) -> None:
    kept.telemetry.hop_step(HopStep(step=replace(STEP, trace=context), spent=SPENT, sent_bytes=8))
    assert kept.ended() == ()


@pytest.mark.parametrize(
    "header", ["", "00-zz-b7ad6b7169203331-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5_000, "\x00"]
)
def test_a_header_that_is_no_trace_begins_a_new_one(kept: Kept, header: str) -> None:
    with kept.telemetry.request("POST /", {"traceparent": header}) as request:
        answer = request.answer(0)
        context = answer.begin()
        answer.end(None)
        answer.close(Timings())
    step, made, whole = kept.ended()
    assert [one.name for one in (step, made, whole)] == ["step", "answer", "POST /"] and whole.parent is None
    assert len({one.context.trace_id for one in (step, made, whole) if one.context}) == 1
    assert step.context is not None and context[:16] == step.context.trace_id.to_bytes(16, "big") and parent_of(context)


def test_a_request_that_fails_says_so(kept: Kept) -> None:
    with pytest.raises(ValueError, match="no"), kept.telemetry.request("POST /", {}):
        raise ValueError("no text of clients in traces")
    (span,) = kept.ended()
    assert not span.status.is_ok and span.status.description == "ValueError" and not span.events


def test_a_collector_that_does_not_answer_delays_the_end_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.telemetry.EXPORT_S", 120.0)
    telemetry = Telemetry.to("http://192.0.2.1:4318", "node")
    telemetry.hop_step(HopStep(step=STEP, spent=SPENT, sent_bytes=8))
    began = time.monotonic()
    telemetry.close()
    assert time.monotonic() - began < 60
