"""Reads a page of metrics as Prometheus does."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

Sample = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """What one address says now."""

    def __init__(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=60) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        self._values: dict[Sample, float] = {
            (one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """0 if there is no such sample."""
        return self._values.get((name, frozenset(labels.items())), 0.0)

    def labels(self, name: str, label: str) -> set[str]:
        """The values of a label, over all samples of that name that count something."""
        found = [dict(labels) for (sample, labels), value in self._values.items() if sample == name and value]
        return {one[label] for one in found if label in one}


def page_where(url: str, holds: Callable[[Page], bool], timeout_s: float = 60.0) -> Page:
    """Read until it holds; AssertionError with what is there if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not holds(page := Page(url)):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {sorted(page._values)}"
        time.sleep(0.05)
    return page
