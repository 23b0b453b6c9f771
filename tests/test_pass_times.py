"""Where `scripts/bench training` says that the time of micro-batches went."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from benchmarks import pass_times, wide_pipeline  # noqa: E402
from marks import Mark  # noqa: E402

TRAINER, FIRST, LAST = 1, 2, 3
WAY = (
    ("taken", TRAINER, 0), ("sent", TRAINER, 1), ("received", FIRST, 11), ("forward begun", FIRST, 14), ("forward done", FIRST, 16),
    ("sent", FIRST, 16), ("received", LAST, 26), ("forward begun", LAST, 26), ("forward done", LAST, 28), ("backward begun", LAST, 28),
    ("backward done", LAST, 32), ("answered", FIRST, 42), ("backward begun", FIRST, 43), ("backward done", FIRST, 47),
    ("answered", TRAINER, 57), ("counted", TRAINER, 58),
)  # fmt: skip
"""Milliseconds of a micro-batch through two stages: 12 are computed, 4 waited for a device, 40 on the way, 2 handled."""


def marks(version: int, begun_ms: int) -> list[Mark]:
    """Two micro-batches, the second 10 ms after the first; the step 100 ms after the beginning."""
    session = f"{version:08x}"
    found = [
        Mark(place, index, 0, (begun_ms + 10 * index + at_ms) * 10**6, process, session)
        for index in range(2)
        for place, process, at_ms in WAY
    ]
    return [*found, Mark("stepped", -1, 0, (begun_ms + 100) * 10**6, FIRST, session)]


def test_each_stretch_between_two_marks_counts_once() -> None:
    everything = sorted([*marks(1, 0), *marks(2, 100), *marks(3, 200)], key=lambda mark: mark.at_ns)
    spent = pass_times.spent(everything, 2, 4)
    assert spent.seconds == pytest.approx(0.2)
    assert spent.computing_s == {FIRST: pytest.approx(4 * 0.006), LAST: pytest.approx(4 * 0.006)}
    assert spent.micro_batch_ms == pytest.approx({"computing": 12, "waiting": 4, "travelling": 40, "handling": 2})
    assert spent.under_way == pytest.approx(2 * 58 / 68), "68 of 100 ms have any"


def test_what_bounds_a_run_is_its_largest_share() -> None:
    busy, idle = {"0:3": 0.9, "3:6": 0.8}, {"0:3": 0.3, "3:6": 0.4}
    assert wide_pipeline.bound(busy, link=0.2, closing=0.05) == "computing of stage 0:3"
    assert wide_pipeline.bound(idle, link=0.95, closing=0.05) == "bandwidth"
    assert wide_pipeline.bound(idle, link=0.2, closing=0.45) == "closing of versions"
    assert wide_pipeline.bound(idle, link=0.2, closing=0.1).startswith("delay")
