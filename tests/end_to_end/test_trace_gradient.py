"""scripts/trace_gradient finds G1 to G9 in the marks of real processes."""

from __future__ import annotations

import importlib.util
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts.run_files import write_run
from tests.end_to_end.processes import ROOT, ProcessPool
from tests.forked import ForkServer


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("trace_gradient", ROOT / "scripts" / "trace_gradient.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "trace_gradient", module)
    spec.loader.exec_module(module)
    return module


def test_a_micro_batch_and_its_version_pass_g1_to_g9_in_order(
    script: ModuleType, tmp_path: Path, fork_server: ForkServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file says 3 versions, and all are told 2."""
    run_file, traced = write_run(tmp_path / "run", {"training.steps": 3}), {"SWARM_TRACE": str(tmp_path / "trace.jsonl")}
    fewer, shared = ["--training.steps", "2"], ["--listen", "127.0.0.1:0", "--no-lan", "--data-dir"]
    with ProcessPool(tmp_path, fork_server) as pool:
        nodes, peer = {}, list[str]()
        for name, blocks in (("anna", "0:2"), ("ben", "2:4")):
            words = ["node", "--run", str(run_file), *fewer, "--blocks", blocks, *peer, *shared, str(tmp_path / name)]
            nodes[name] = pool.start(name, words, traced)
            nodes[name].wait_for("ready")
            peer = ["--peer", nodes["anna"].said["multiaddr"]]
        words = ["train", str(run_file), *fewer, *peer, "--out", str(tmp_path / "runs"), *shared, str(tmp_path / "trainer")]
        trainer = pool.start("trainer", words, traced)
        trainer.wait_for("trained")
        assert trainer.has_ended(60) and trainer.code == 0
        for node in nodes.values():
            assert node.end(signal.SIGINT) == 0
    names = {node.pid: name for name, node in nodes.items()}
    marks = script.read_marks(tmp_path / "trace.jsonl")

    passed = script.of_micro_batch(marks, 1, 2)
    assert [(names.get(mark.process, "trainer"), mark.place) for mark in passed] == [
        ("trainer", "taken"), ("trainer", "drawn"), ("trainer", "chosen"), ("trainer", "sent"),
        ("anna", "received"), ("anna", "forward begun"), ("anna", "forward done"), ("anna", "sent"),
        ("ben", "received"), ("ben", "forward begun"), ("ben", "forward done"), ("ben", "backward begun"), ("ben", "backward done"),
        ("anna", "answered"), ("anna", "backward begun"), ("anna", "backward done"),
        ("trainer", "answered"), ("trainer", "counted"),
    ]  # fmt: skip
    hidden = 4 * 32 * 32 * 4  # sequences, tokens, hidden size, bytes
    sizes = {(mark.process, mark.place): mark.num_bytes for mark in passed}
    assert sizes[nodes["anna"].pid, "answered"] == hidden, "the gradient of the hidden states"
    assert hidden < sizes[nodes["ben"].pid, "received"] == sizes[nodes["anna"].pid, "sent"] < 1.3 * hidden

    closed = script.of_version(marks, 1)
    assert [mark.place for mark in closed if mark.process not in names] == ["complete", "applying"]
    first = {place: next(mark.at_ns for mark in closed if mark.place == place) for place in script.OF_A_VERSION}
    assert sorted(first, key=first.__getitem__) == list(script.OF_A_VERSION)
    assert {mark.process for mark in closed if mark.place == "stepped"} == set(names), "every node has stepped"

    script.show(marks, names, 1, 2)
    table = capsys.readouterr().out
    assert [stage for stage in ("G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9") if f"│ {stage} │" not in table] == []
    with pytest.raises(script.VolunteerError, match="no micro-batch 2 of version 9"):
        script.show(marks, names, 9, 2)
