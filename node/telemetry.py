"""Traces by OpenTelemetry: spans of requests, steps and hops.

A gateway begins a trace, or goes on with the one of the request's `traceparent`. Each step's frame takes the context along, and each hop
that exports, too, adds its span. Where nothing is exported, this file is not imported (it needs the extra `otel`).

    POST /v1/chat/completions        gateway, until the last byte
      answer                         gateway, one for each choice
        step                         gateway, from the frame to the reply
          hop                        node, one for each hop: its queue and its computing are attributes
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from protocols.ids import short
from protocols.inference import TRACE_BYTES
from swarm.measured import HopStep
from swarm.timings import StepTime, Timings

EXPORT_S = 5.0
"""How long one export may take; what does not fit into the queue meanwhile is dropped."""

CLOSE_S = 2.0
"""How long the end of the process waits for spans that are not sent yet."""

PATH = "/v1/traces"
"""Of a collector."""


class Telemetry:
    """The spans of one process; a `measured.Listener`. From any thread."""

    def __init__(self, exporter: SpanExporter, service: str, name: str = "") -> None:
        """service: `node` or `gateway`. name: of this process, among others of the service."""
        fields = {"service.name": f"murmuration-{service}"} | ({"service.instance.id": name} if name else {})
        self._provider = TracerProvider(resource=Resource.create(fields), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("murmuration")

    @classmethod
    def to(cls, endpoint: str | None, service: str, name: str = "") -> Telemetry:
        """endpoint: of a collector, as http://127.0.0.1:4318; None: as OpenTelemetry's variables say."""
        where = None if endpoint is None else endpoint.rstrip("/").removesuffix(PATH) + PATH
        return cls(OTLPSpanExporter(endpoint=where, timeout=EXPORT_S), service, name)

    def flush(self) -> None:
        """Send what waits, for CLOSE_S at most."""
        _within(self._provider.force_flush)

    def close(self) -> None:
        """The same, and nothing any more."""
        _within(self._provider.shutdown)

    # --- of a node

    def hop_step(self, done: HopStep) -> None:
        """A step has been computed here: its span is that of its client's trace."""
        if (parent := parent_of(done.step.trace)) is None:
            return
        now_ns, spent = time.time_ns(), done.spent
        span = self._tracer.start_span(
            "hop", parent, SpanKind.SERVER, start_time=now_ns - int(spent.total_ms * 1e6),
            attributes={
                "murmuration.session": short(done.step.session), "murmuration.step": done.step.step,
                "murmuration.hop": spent.index, "murmuration.tokens": done.num_tokens,
                "murmuration.queue_ms": spent.queue_ms, "murmuration.compute_ms": spent.compute_ms,
                "murmuration.received_bytes": done.step.payload.num_bytes, "murmuration.sent_bytes": done.sent_bytes,
            },
        )  # fmt: skip
        span.end(now_ns)

    def gradient(self, stage: str, seconds: float) -> None:
        """Training has no traces."""

    # --- of a gateway

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """The span of a request, until the block ends. headers: of which `traceparent` and `tracestate` count."""
        parent = TraceContextTextMapPropagator().extract(headers, Context())
        span = self._tracer.start_span(name, parent, SpanKind.SERVER)
        try:
            yield RequestTrace(self._tracer, span)
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            span.end()


class RequestTrace:
    """The spans within a request's."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span

    def told(self, **attributes: str | int) -> None:
        """As `node.gateway.answers.traces.RequestTrace`."""
        self._span.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def answer(self, choice: int) -> AnswerTrace:
        """One answer begins."""
        span = self._tracer.start_span("answer", trace.set_span_in_context(self._span, Context()))
        span.set_attribute("murmuration.choice", choice)
        return AnswerTrace(self._tracer, span)


class AnswerTrace:
    """A `StepTracer` of the answer's session."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self._step: Span | None = None

    def begin(self) -> bytes:
        self._step = self._tracer.start_span("step", trace.set_span_in_context(self._span, Context()), SpanKind.CLIENT)
        return packed(self._step.get_span_context())

    def end(self, time: StepTime | None) -> None:
        assert self._step is not None
        if time is None:
            self._step.set_status(Status(StatusCode.ERROR))
        else:
            self._step.set_attributes({"murmuration.tokens": time.num_tokens, "murmuration.hops": len(time.route)})
        self._step.end()

    def close(self, timings: Timings) -> None:
        """The answer has ended, also if it failed: T1 to T9 are its attributes."""
        self._span.set_attributes({f"murmuration.{stage.lower()}_ms": round(ms, 3) for stage, ms in timings.stages().items()})
        self._span.end()


def _within(work: Callable[[], object]) -> None:
    """Wait for work of the SDK, which has longer limits of its own, for CLOSE_S at most."""
    thread = threading.Thread(target=work, name="sending traces", daemon=True)
    thread.start()
    thread.join(CLOSE_S)


def packed(context: SpanContext) -> bytes:
    """As frames take it along; empty if the trace is not kept."""
    if not context.trace_flags.sampled:
        return b""
    return context.trace_id.to_bytes(16, "big") + context.span_id.to_bytes(8, "big") + bytes([context.trace_flags])


def parent_of(packed: bytes) -> Context | None:
    """The same, as the parent of a span; None: no trace, or none that can be."""
    if len(packed) != TRACE_BYTES:
        return None
    trace_id, span_id = int.from_bytes(packed[:16], "big"), int.from_bytes(packed[16:24], "big")
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(packed[24] & TraceFlags.SAMPLED))
    return trace.set_span_in_context(NonRecordingSpan(context), Context()) if context.is_valid else None
