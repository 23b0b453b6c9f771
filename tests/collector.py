"""An OpenTelemetry collector on loopback that keeps the spans it gets."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse


@dataclass(frozen=True)
class Seen:
    """One span, as it came over HTTP."""

    service: str
    instance: str
    name: str
    trace: str
    span: str
    parent: str
    start_ns: int
    end_ns: int
    fields: dict[str, Any]


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


class Collector:
    """`with Collector() as collector:` listens at `collector.url`."""

    def __init__(self) -> None:
        self.spans: list[Seen] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                collector.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            of = {one.key: _value(one.value) for one in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Seen(
                        service=of["service.name"], instance=of.get("service.instance.id", ""), name=span.name,
                        trace=span.trace_id.hex(), span=span.span_id.hex(), parent=span.parent_span_id.hex(),
                        start_ns=span.start_time_unix_nano, end_ns=span.end_time_unix_nano,
                        fields={one.key: _value(one.value) for one in span.attributes},
                    )
                )  # fmt: skip

    def of(self, trace: str, holds: Callable[[list[Seen]], bool], timeout_s: float = 60.0) -> list[Seen]:
        """The spans of a trace as soon as it holds; AssertionError with them if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not holds(found := [span for span in list(self.spans) if span.trace == trace]):
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {found}"
            time.sleep(0.05)
        return found
