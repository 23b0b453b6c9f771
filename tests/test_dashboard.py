"""Grafana's dashboard asks for metrics and labels that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from node.metrics import ALL, Metric

FILE = Path(__file__).resolve().parent.parent / "deploy/grafana/murmuration.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
QUERIES: list[str] = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
BY_NAME = {metric.name: metric for metric in ALL}
OF_PROMETHEUS = {"instance", "job", "le"}


def metric_of(name: str) -> Metric | None:
    """The one whose sample has this name."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    found = BY_NAME.get(name) if name in BY_NAME else BY_NAME.get(base)
    return None if found is None or (found.kind == "histogram") is (name in BY_NAME) else found


def wrong(query: str) -> list[str]:
    """What a query names that is not there."""
    names = re.findall(r"murmuration_\w+", query)
    found = {name: metric_of(name) for name in names}
    missing = [name for name, metric in found.items() if metric is None]
    has = OF_PROMETHEUS | {label for metric in found.values() if metric is not None for label in metric.labels}
    asked = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    asked |= set(re.findall(r"[{,]\s*(\w+)\s*=", query))
    bare = [name for name, metric in found.items() if metric and metric.kind != "gauge" and f"rate({name}" not in query]
    return missing + sorted(asked - has) + bare


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_and_labels_that_are_counted(query: str) -> None:
    assert re.search(r"murmuration_\w+", query) and query.count("(") == query.count(")")
    assert not wrong(query)


@pytest.mark.parametrize(
    "query",
    [
        "rate(murmuration_no_tokens_total[1m])",
        "sum by (model) (murmuration_running_requests)",
        "rate(murmuration_first_token_seconds[1m])",
        'rate(murmuration_requests_total{stage="T1"}[1m])',
        "murmuration_requests_total",
    ],
)
def test_the_check_itself_finds_what_is_wrong(query: str) -> None:
    assert wrong(query)


def test_every_metric_but_the_number_of_open_models_is_on_the_dashboard() -> None:
    shown = {metric.name for query in QUERIES for name in re.findall(r"murmuration_\w+", query) if (metric := metric_of(name))}
    assert set(BY_NAME) - shown == {"murmuration_open_models"}


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for at in places for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_legends_name_labels_that_the_query_keeps() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            kept = {label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")}
            is_whole = "sum" not in target["expr"]
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert label in kept or (is_whole and label in OF_PROMETHEUS), target
