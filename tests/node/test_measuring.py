"""A node's own page for Prometheus."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from node.config import parse_port
from node.events import Event
from node.measuring import measuring
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
