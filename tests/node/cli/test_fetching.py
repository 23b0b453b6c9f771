"""Progress of a download: plain lines with rate and time left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from node.cli.terminal.console import Lines
from node.cli.terminal.fetching import FetchProgress, described
from swarm.weights.terms import Progress

HALF = Progress(
    total_bytes=200_000_000, done_bytes=100_000_000, resumed_bytes=60_000_000, fetched_bytes=40_100_000, num_sources=3
)


def test_a_line_says_how_much_how_fast_how_long_and_what_was_there() -> None:
    said = described(HALF, 4.0, 60_000_000)
    assert said == "100.0 of 200.0 MB (50%), 10.0 MB/s, 10 s left, from 3 peers, 60.0 MB were here before"


def test_a_script_gets_a_line_every_few_seconds_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with FetchProgress(Lines(), lambda: now_s) as progress:
        for _ in range(100):
            progress.show(HALF)
            now_s += 0.125
        progress.show(replace(HALF, done_bytes=HALF.total_bytes))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.startswith("fetching: ") for line in lines)
