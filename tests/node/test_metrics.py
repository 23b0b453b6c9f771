"""Names, units and meanings of what is counted."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node import metrics
from node.metrics import ALL, Metric, Metrics

UNITS = {
    "counter": ("total",),
    "histogram": ("seconds",),
    "gauge": ("requests", "sessions", "models", "steps", "bytes", "blocks", "peers"),
}
"""Last words of names by kind, as Prometheus' documents advise."""


def used(counts: Metrics) -> dict[str, Any]:
    """Each metric with a value, then what Prometheus reads of it."""
    for metric in ALL:
        labels = dict.fromkeys(metric.labels, 'a "label"\n')
        if metric.kind == "histogram":
            counts.took(metric, 0.3, **labels)
        else:
            counts.count(metric, 2, **labels)
    return {
        family.name: family
        for family in text_string_to_metric_families(counts.text().decode())
        if not family.name.endswith("_created")
    }


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_each_metric_has_a_unit_a_meaning_and_is_read_as_it_is_declared(metric: Metric) -> None:
    assert re.fullmatch(r"murmuration(_[a-z]+)+", metric.name)
    assert metric.name.rpartition("_")[2] in UNITS[metric.kind]
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.meaning[0].isupper() and metric.meaning.endswith(".") and "|" not in metric.meaning
    family = used(Metrics(ALL))[metric.name.removesuffix("_total")]
    assert (family.type, family.documentation) == (metric.kind, metric.meaning)
    samples = [one for one in family.samples if not one.name.endswith(("_created", "_bucket", "_sum"))]
    assert [set(one.labels) for one in samples] == [set(metric.labels)]
    assert samples[0].value == (1 if metric.kind == "histogram" else 2)


def test_all_metrics_of_the_module_are_listed_once_and_no_others_are_shown() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert len({one.name for one in ALL}) == len(ALL) and set(ALL) == set(declared)
    assert len(used(Metrics(ALL))) == len(ALL)
    assert all(f"| `{one.name}` | {one.kind} |" in metrics.table(ALL) for one in ALL)


def test_gateways_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count(metrics.ANSWER_TOKENS, model="tiny")
    assert b'answer_tokens_total{model="tiny"} 1.0' in first.text() and b'model="tiny"' not in second.text()


def test_a_gauge_is_asked_when_it_is_read() -> None:
    counts, values = Metrics(), iter([3, 5])
    counts.read_from(metrics.RUNNING, lambda: next(values))
    assert b"running_requests 3.0" in counts.text() and b"running_requests 5.0" in counts.text()
