"""The report: whole without other files, harmless, thinned, readable."""

from __future__ import annotations

import base64
import re
import struct
from dataclasses import replace
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  (its first import on a machine starts fc-list, which no test in this folder may)
import pytest

from node.cli.app import main
from node.training.metrics import EventRow, MetricsFile, VersionRow, mean_row
from node.training.report.history import MAX_POINTS, smoothed, thinned
from node.training.report.tensorboard import FOLDER, TensorBoard


def version(number: int, **changes: float) -> VersionRow:
    fields = {"loss": 3 / number, "lr": 1e-3, "grad_norm": 0.5, "time_s": 2.0 * number, "tokens_per_s": 50.0, "waiting_s": 0.1}
    return VersionRow(version=number, tokens=100 * number, peers=2, bytes_sent=4_000, redone=0, **(fields | changes))  # type: ignore[arg-type]


def run_folder(folder: Path) -> Path:
    with MetricsFile(folder) as file:
        for number in (1, 2, 3):
            file.write(version(number))
        file.write(replace(version(4), loss=None))  # its trainer died
        file.write(mean_row(3, 30.0, 10, 24, 6.5, {"Say": " <script>alert(1)</script>"}))
        file.write(EventRow(event="gone", version=2, time_s=4.5, text="<img src=x>"))
    return folder


def test_a_report_is_one_page_with_its_pictures_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run_folder(tmp_path))])
    assert ended.value.code == 0 and capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    embedded = {base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)}
    pictures = {path.read_bytes() for path in (tmp_path / "report").glob("*.png")}
    assert embedded == pictures and len(pictures) == 6
    assert all(data.startswith(b"\x89PNG") and min(struct.unpack(">2I", data[16:24])) > 400 for data in pictures)
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    for shown in ("20.0855", "gone", "3.0000", "16.0 kB", "1.0000"):
        assert shown in page, shown


def test_a_folder_without_a_version_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MetricsFile(tmp_path).close()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code and "has no version yet" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    values = [float(number) for number in range(10 * MAX_POINTS)]
    found = thinned(values)
    assert len(found) == MAX_POINTS and (found[0], found[-1]) == (values[0], values[-1]) and found == sorted(set(found))
    assert thinned(values[:5]) == values[:5]
    assert smoothed([2.0] * 300) == pytest.approx([2.0] * 300)


def test_tensorboard_gets_each_line(tmp_path: Path) -> None:
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    with TensorBoard(tmp_path) as board:
        board.write(version(1))
        board.write(replace(version(3), loss=None))
        board.write(mean_row(1, 30.0, 10, 24, 6.5, {"Say": " hello"}))
        board.write(mean_row(2, 0.0, 0, 0, 6.5, {}))
        board.write(EventRow(event="gone", version=2, time_s=4.5))
    (file,) = (tmp_path / FOLDER).iterdir()
    events = [event_pb2.Event.FromString(record) for record in records(file.read_bytes())]
    found = {(event.step, value.tag): value for event in events for value in event.summary.value}
    assert found[1, "train/loss"].simple_value == pytest.approx(3.0)
    assert found[1, "validation/perplexity"].simple_value == pytest.approx(20.0855, rel=1e-4)
    assert found[1, "samples/Say"].tensor.string_val[0] == b"Say hello"
    assert (3, "train/lr") in found and (3, "train/loss") not in found
    assert not any(step == 2 for step, _ in found)


def records(data: bytes) -> list[bytes]:
    """Of a TFRecord file: length, its checksum, data, its checksum."""
    found = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + size])
        data = data[16 + size :]
    return found
