"""Traces that a command sends, if it is asked to.

By its flag `--otlp`, or by OpenTelemetry's own variables.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from protocols.errors import ConfigError
from swarm import measured

if TYPE_CHECKING:
    from node.telemetry import Telemetry

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextlib.contextmanager
def following(endpoint: str | None, service: str, name: str = "") -> Iterator[Telemetry | None]:
    """Keep traces until the block ends; None: no trace is asked for. ConfigError if the extra is missing, or the URL is none."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or not (endpoint or any(map(os.environ.get, VARIABLES))):
        yield None
        return
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp is a URL, as http://127.0.0.1:4318, got {endpoint[:80]!r}")
    try:
        from node.telemetry import Telemetry
    except ImportError as error:
        raise ConfigError(f"--otlp needs the extra `otel` ({error}): pip install 'murmuration[otel]'") from None
    telemetry = Telemetry.to(endpoint, service, name)
    end = measured.listen(telemetry)
    try:
        yield telemetry
    finally:
        end()
        telemetry.close()
