"""`scripts/gpu_check`: its sections on a CPU, its failures, its wheels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402
import pip_download  # noqa: E402
from gpu import blocks, ceilings, speed, table, training, wheels  # noqa: E402
from gpu.sizes import FULL, SMALL  # noqa: E402


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every section but the tests, in this process, on the CPU."""
    folder = tmp_path_factory.mktemp("gpu")
    sections = {
        "ceilings": ceilings.measure("cpu", SMALL),
        "model": blocks.make("cpu", SMALL, folder),
        "decode": speed.decode("cpu", SMALL, folder),
        "prefill": speed.prefill("cpu", SMALL, folder),
        "graphs": speed.graphs("cpu", SMALL, folder),
        "training": training.measure("cpu", SMALL, folder),
    }
    return table.with_shares({"device": "cpu", "small": True, "seconds": 1.0, "sections": sections, "failed": {}})


def test_decodes_go_through_batches_and_are_shares_of_the_copy_bandwidth(result: dict[str, Any]) -> None:
    bandwidth, decode = result["sections"]["ceilings"]["copy_bytes_per_s"], result["sections"]["decode"]
    assert decode["engine"] == "packed"
    assert [row["sessions"] for row in decode["rows"]] == [1, 8, 32]
    for row in decode["rows"]:
        assert row["tokens_per_s"] == pytest.approx(row["sessions"] / row["step_ms"]["best"] * 1e3, rel=0.01)
        assert row["bytes_per_s"] == pytest.approx(row["read_bytes"] / row["step_ms"]["best"] * 1e3, rel=0.01)
        assert row["share_of_copy"] == pytest.approx(row["bytes_per_s"] / bandwidth, rel=0.01, abs=1e-4)
    few, many = decode["rows"][0], decode["rows"][-1]
    assert few["forwards_per_token"] == 1 and many["forwards_per_token"] < 32, "sessions share forwards"
    kv = 2 * 2 * 16 * 2 * 3  # keys and values, heads, head size, bytes, blocks
    assert few["read_bytes"] == pytest.approx(decode["weight_bytes"] + kv * (24 + 4 + 3.5), abs=1)


def test_a_prompt_is_a_share_of_the_matrix_rate(result: dict[str, Any]) -> None:
    prefill, peak = result["sections"]["prefill"], result["sections"]["ceilings"]["matmul_flop_per_s"]
    assert prefill["tokens"] == 128 and prefill["forwards"] >= 1
    assert prefill["flop"] == 2 * 128 * result["sections"]["model"]["parameters"] + 2 * 128 * 128 * 64 * 3
    assert prefill["share_of_matmul"] == pytest.approx(prefill["flop_per_s"] / peak, rel=0.01, abs=1e-4)


def test_training_goes_through_a_stage_whose_units_step_and_is_a_share_of_the_matrix_rate(result: dict[str, Any]) -> None:
    found, peak = result["sections"]["training"], result["sections"]["ceilings"]["matmul_flop_per_s"]
    assert (found["tokens"], found["versions"]) == (64, SMALL.repeats + 1)
    assert found["flop"] == 6 * 64 * result["sections"]["model"]["parameters"] + 2 * 6 * 32 * 32 * 64 * 3
    assert found["flop_per_s"] == pytest.approx(found["flop"] / found["pass_ms"]["best"] * 1e3, rel=0.01)
    assert found["share_of_matmul"] == pytest.approx(found["flop_per_s"] / peak, rel=0.01, abs=1e-4)
    assert all(found[f"{name}_ms"]["best"] > 0 for name in ("forward", "backward", "adding", "step"))
    method = next(line for line in table.text(result).splitlines() if line.startswith("training  method"))
    assert "6 for each parameter and token" in method and "bfloat16" in method


def test_captured_forwards_were_replayed_and_what_is_not_there_is_null(result: dict[str, Any]) -> None:
    graphs = result["sections"]["graphs"]
    assert graphs["refusal"] is None and graphs["replayed"] > 0
    assert [row["sessions"] for row in graphs["rows"]] == [1, 8]
    assert all(row["plain_ms"] > 0 and row["captured_ms"] > 0 and row["cuda_graph_ms"] is None for row in graphs["rows"])
    assert "CUDA graphs" in graphs["cuda_graph_reason"]


def test_the_table_has_a_line_for_every_measurement(result: dict[str, Any]) -> None:
    lines = table.text(json.loads(json.dumps(result))).splitlines()
    names = "ceilings ceilings model decode decode decode prefill training training training training graphs graphs graphs"
    assert [line.split()[0] for line in lines[1:-1]] == names.split()
    assert lines[-1] == "cpu, small: 1.0 s, 0 sections failed"
    assert "FAILED tests: 3 tests failed" in table.text(result | {"failed": {"tests": "3 tests failed"}}).splitlines()


def test_the_span_has_a_billion_parameters_and_all_limits_fit_in_eight_minutes() -> None:
    assert FULL.shape.block_values >= 10**9 and FULL.shape.dtype == "bfloat16"
    assert (FULL.sessions, FULL.prefill_tokens) == ((1, 8, 32), 2_048)
    assert sum(gpu_check.LIMITS_S.values()) <= 475
    assert sum(gpu_check.limit_s(name) for name in gpu_check.with_model(["ceilings", "training"])) <= 475


def test_a_section_that_fails_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    """Whatever machine this is, it has no hundred cards."""
    command = [ROOT / "scripts/gpu_check", "--device", "cuda:99", "--small", "--only", "ceilings", "model"]
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 1, done.stderr
    assert list(found["failed"]) == ["ceilings", "model"] and found["sections"] == {}
    assert "Traceback" in (tmp_path / "gpu_check.ceilings.log").read_text()
    assert done.stdout.splitlines()[-1].endswith("2 sections failed") and "FAILED model: " in done.stdout


def test_a_section_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_check.LIMITS_S, "ceilings", 0.05)
    arguments = f"gpu_check --device cpu --small --only ceilings --out {tmp_path}/a.json"
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert gpu_check.main() == 1
    assert json.loads((tmp_path / "a.json").read_text())["failed"] == {"ceilings": "it took longer than 0.05 s"}


# --- wheels


def test_every_wheel_is_in_the_lock_and_none_is_for_the_dht() -> None:
    wanted = wheels.pinned((ROOT / "requirements.lock").read_text())
    assert len(wanted) == len(wheels.NAMES) and all("==" in one for one in wanted)
    assert not {"hivemind", "grpcio", "cryptography", "torch", "numpy"} & set(wheels.NAMES)
    with pytest.raises(wheels.WheelsError, match=r"no version of .*transformers"):
        wheels.pinned("torch==2.13.0\n")


def test_wheels_that_cannot_travel_are_refused() -> None:
    wheels.check_size([("a.whl", wheels.MAX_BYTES)])
    with pytest.raises(wheels.WheelsError, match="60,000,001 bytes"):
        wheels.check_size([("a.whl", wheels.MAX_BYTES), ("b.whl", 1)])


def test_wheels_are_downloaded_or_one_line_says_why_not(tmp_path: Path) -> None:
    """From a folder instead of the index."""
    index, folder = tmp_path / "index", tmp_path / "folder"
    index.mkdir()
    with zipfile.ZipFile(index / "sample-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
        archive.writestr("sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("sample-1.0.dist-info/RECORD", "")
    where = ("--no-index", "--find-links", str(index))
    pip_download.download(folder, ["sample==1.0"], *where)
    assert [wheel.name for wheel in folder.iterdir()] == ["sample-1.0-py3-none-any.whl"]
    with pytest.raises(
        pip_download.DownloadError, match=r"^pip could not download parting==1.0 \(ERROR: .*parting.*; check the net"
    ):
        pip_download.download(folder, ["parting==1.0"], *where)
    with pytest.raises(pip_download.DownloadError, match=r"could not download 2 wheels \(ERROR"):
        pip_download.download(folder, ["sample==1.0", "parting==1.0"], *where)


def test_unpacked_wheels_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "sample-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("sample/__init__.py", "WORD = 'hello'\n")
    assert wheels.unpack(tmp_path / "wheels", tmp_path / "site") == 1
    said = subprocess.run(
        [sys.executable, "-c", "import sample; print(sample.WORD)"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert said.stdout == "hello\n"


def test_pytest_and_a_decode_run_in_processes_of_their_own(tmp_path: Path) -> None:
    """The other sections ran above; all of them take half a minute: scripts/gpu_check --device cpu --small."""
    arguments = f"--device cpu --small --only tests decode --out {tmp_path}/all.json"
    command = [ROOT / "scripts/gpu_check", *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": sys.executable}, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "all.json").read_text())
    assert list(found["sections"]) == ["tests", "model", "decode"] and found["failed"] == {}
    assert found["sections"]["tests"]["passed"] == len(SMALL.families or ()) and not found["sections"]["tests"]["failures"]
    assert set(found["sections"]["tests"]["families_by_engine"]) == {"packed", "paged", "serial"}
    assert all(row["share_of_copy"] is None for row in found["sections"]["decode"]["rows"]), "no ceiling was measured"
