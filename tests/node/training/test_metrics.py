"""`metrics.jsonl`: lines survive a kill; a resumed run replaces its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.training import metrics
from node.training.metrics import EvaluationRow, EventRow, MetricsFile, VersionRow
from protocols.errors import CheckpointError, DiskFullError


def row(version: int, loss: float) -> VersionRow:
    return VersionRow(
        version=version, tokens=version * 100, loss=loss, lr=1e-3, grad_norm=0.0, time_s=1.0, tokens_per_s=10.0, peers=2,
        bytes_sent=5, waiting_s=0.1, redone=0,
    )  # fmt: skip


def test_a_resumed_run_goes_on_in_its_file_and_the_last_row_of_a_version_counts(tmp_path: Path) -> None:
    with MetricsFile(tmp_path) as file:
        file.write(row(1, 3.0))
        file.write(row(2, 2.5))
    with MetricsFile(tmp_path) as file:
        file.write(row(2, 2.4))
        file.write(
            EvaluationRow(evaluation=2, loss=2.6, perplexity=13.5, bits_per_byte=1.2, tokens=64, time_s=2.0, samples={"A": "b"})
        )
        file.write(EventRow(event="joined", version=2, time_s=2.5, text="anna"))
    versions, evaluations = metrics.read(tmp_path)
    assert [(one["version"], one["loss"]) for one in versions] == [(1, 3.0), (2, 2.4)]
    assert [one["samples"] for one in evaluations] == [{"A": "b"}]
    assert [one.text for one in metrics.read_events(tmp_path)] == ["anna"]


def test_lines_beyond_the_version_that_a_run_went_back_to_do_not_count(tmp_path: Path) -> None:
    with MetricsFile(tmp_path) as file:
        for version in (1, 2, 3, 2):
            file.write(row(version, float(version)))
    assert [one["version"] for one in metrics.read(tmp_path)[0]] == [1, 2]


def test_the_half_line_of_a_killed_process_is_skipped(tmp_path: Path) -> None:
    with MetricsFile(tmp_path) as file:
        file.write(row(1, 3.0))
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"version": 2, "lo')
    assert [one["version"] for one in metrics.read(tmp_path)[0]] == [1]


def test_a_folder_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is this the folder of a run"):
        metrics.read(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskFullError, match="cannot write"):
        MetricsFile(tmp_path / "file" / "run")


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    import math

    assert metrics.bits_per_byte(10 * math.log(256), 10) == pytest.approx(8)
    assert metrics.perplexity(1000) == math.inf
