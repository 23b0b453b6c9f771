"""The tests of engines and ends, run by pytest on the device."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

from gpu.sizes import Sizes

FOLDER = "tests/node/engines"
FILES = ("test_engines.py", "test_ends.py", "test_engines_memory.py", "graphs/test_engine_graphs.py")
PER_FAMILY = "test_batched_spans_equal_the_whole_model"


STOP_S = 150
"""No test begins later than so long after pytest did: what was found until then is worth more than a section that is killed."""


class _Outcomes:
    """A pytest plugin that counts, and stops in time."""

    def __init__(self, stop_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop_s = time.monotonic() + stop_s

    def pytest_runtest_setup(self, item: Any) -> None:
        if time.monotonic() > self._stop_s:
            item.session.shouldstop = f"{STOP_S} s are over"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failures.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failures.append(f"{report.nodeid} (collection)")


def run(device: str, sizes: Sizes) -> dict[str, Any]:
    """Section `tests`. Its `fault` says how many failed, if any did."""
    import pytest

    os.environ["MURMURATION_TEST_DEVICE"] = device
    wanted = [f"{FOLDER}/{name}" for name in FILES]
    if sizes.families is not None:
        wanted = [f"{FOLDER}/test_engines.py::{PER_FAMILY}[{family}]" for family in sizes.families]
    outcomes, started = _Outcomes(STOP_S), time.monotonic()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--timeout=120", *wanted], plugins=[outcomes])
    result = {
        "passed": outcomes.counts["passed"],
        "failed": len(outcomes.failures),
        "skipped": outcomes.counts["skipped"],
        "seconds": round(time.monotonic() - started, 1),
        "failures": outcomes.failures,
    } | engines()
    if code or outcomes.failures or not outcomes.counts["passed"]:
        return result | {
            "fault": f"{len(outcomes.failures)} tests failed, {outcomes.counts['passed']} passed (pytest's exit code {int(code)})"
        }
    return result


def engines() -> dict[str, Any]:
    """Families of each engine, as `tests/node/engines/test_engines.py` expects them."""
    from tests.node.engines.test_engines import MODES

    return {"families_by_engine": dict(Counter(MODES.values()))}
