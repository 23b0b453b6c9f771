"""A node's own page for Prometheus."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from node.config import parse_port
from node.events import Event
from node.measuring import measuring
from node.metrics_page import MAX_READERS, served
from protocols.errors import ConfigError
from protocols.timings import HopTime
from swarm import measured
from tests.protocols.samples import SAMPLES
from tests.scraped import Page

STEP = SAMPLES["step"]
SPENT = HopTime(index=0, queue_ms=1.0, compute_ms=20.0, total_ms=25.0)


def test_what_is_measured_is_on_the_page_that_was_told() -> None:
    told: list[Event] = []
    with measuring(("127.0.0.1", 0), told.append) as measures:
        assert measures is not None
        measured.hop_step(STEP, SPENT, 40)
        measured.hop_step(replace(STEP, counts=(1, 1, 1)), SPENT, 2)
        with measured.timed("G9"):
            pass
        page = Page(told[0].text)
    assert told[0].kind == "metrics"
    assert page.value("murmuration_step_stage_seconds_sum", stage="T5") == pytest.approx(0.008)
    assert page.value("murmuration_step_stage_seconds_sum", stage="T7") == pytest.approx(0.04)
    assert (
        page.value("murmuration_step_tokens_total", part="prompt"),
        page.value("murmuration_step_tokens_total", part="token"),
    ) == (3, 3)
    assert page.value("murmuration_step_sent_bytes_total") == 42
    assert page.value("murmuration_gradient_stage_seconds_count", stage="G9") == 1


def test_after_the_end_nothing_is_counted_and_the_port_is_free() -> None:
    told: list[Event] = []
    with measuring(("127.0.0.1", 0), told.append) as measures:
        assert measures is not None
    measured.hop_step(STEP, SPENT, 40)
    assert b'tokens_total{part="prompt"}' not in measures.metrics.text()
    port = int(told[0].text.rpartition(":")[2].partition("/")[0])
    with measuring(("127.0.0.1", port), told.append):
        Page(told[1].text)


def test_without_an_address_nothing_is_measured() -> None:
    told: list[Event] = []
    with measuring(None, told.append) as measures:
        assert measures is None and not told and not measured._listeners


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"--metrics: cannot listen .* in use; choose another"),
        measuring(taken.getsockname(), lambda event: None),
    ):
        raise AssertionError


def test_a_port_alone_is_on_this_machine() -> None:
    assert parse_port("9400", "--metrics") == ("127.0.0.1", 9400) and parse_port("0.0.0.0:1", "--metrics") == ("0.0.0.0", 1)
    with pytest.raises(ConfigError, match="--metrics is written HOST:PORT"):
        parse_port("99999", "--metrics")


def test_a_reader_that_says_nothing_is_cut_off_and_no_more_than_some_are_let_in() -> None:
    registry = CollectorRegistry()
    with served(registry, ("127.0.0.1", 0), reader_s=0.5) as url, contextlib.ExitStack() as connected:
        port = int(url.rpartition(":")[2].partition("/")[0])
        silent = [
            connected.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(MAX_READERS + 3)
        ]
        with contextlib.suppress(ConnectionError):  # if this process is late, it is cut off already
            silent[0].sendall(b"GET /metr")
        assert [said_to(one) for one in silent] == [b""] * len(silent), "each of them was closed"
        deadline_s = time.monotonic() + 60
        while not answers(url):  # the last place is free a moment after its reader is cut off
            assert time.monotonic() < deadline_s


def said_to(reader: socket.socket) -> bytes:
    """A byte, or none if it was closed."""
    with contextlib.suppress(ConnectionError):
        return reader.recv(1)
    return b""


def answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        Page(url)
        return True
    return False


def test_readers_beyond_the_places_are_closed_at_once_and_the_others_are_answered() -> None:
    with served(CollectorRegistry(), ("127.0.0.1", 0), reader_s=60) as url, contextlib.ExitStack() as connected:
        port = int(url.rpartition(":")[2].partition("/")[0])
        silent = [
            connected.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(MAX_READERS + 1)
        ]
        assert silent[-1].recv(1) == b"", "no place was left for the last one"
        silent[0].sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert silent[0].recv(12) == b"HTTP/1.0 200"
