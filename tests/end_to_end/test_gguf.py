"""A directory with a GGUF file serves like its original checkpoint.

It is converted once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from protocols.errors import CheckpointError, ConfigError, ModelNotSupportedError, SwarmError
from swarm import helper_process
from swarm.checkpoints import conversions, gguf
from swarm.checkpoints.resolve import resolve
from swarm.client import SwarmModelForCausalLM
from swarm.models.gguf_main import saved_dtype
from swarm.waiting import Wait, Waits
from tests.end_to_end.processes import ROOT, ProcessPool
from tests.forked import ForkServer
from tests.gguf_files import make_directory

TEXT = "the cat and the hat"
GREEDY: dict[str, Any] = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}


STAND_IN = """
import pathlib, sys
(pathlib.Path(sys.argv[2]) / "config.json").write_text(sys.argv[1])
print('{"done": 1, "total": 4}', '{"is_whole": true}', sep="\\n")
"""
"""Takes the arguments of the converter, and says what it says."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(module: str, *arguments: str, environment: object) -> subprocess.Popen[bytes]:
        assert module == "swarm.models.gguf_main"
        return subprocess.Popen([sys.executable, "-ISc", STAND_IN, *arguments], stdout=subprocess.PIPE)

    monkeypatch.setattr(helper_process, "start", start)


def test_node_and_client_take_the_directory_and_convert_it_once(
    fork_server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes want it at the same time, with one cache: one converts, the other waits, and takes what that made."""
    directory, model = make_directory(tmp_path / "tiny")
    data, waits = tmp_path / "data", list[Wait | None]()
    arguments = ["node", str(directory), "--listen", "127.0.0.1:0", "--data-dir", str(data), "--swarm", "gguf", "--no-lan"]
    with ProcessPool(tmp_path, fork_server) as pool:
        node = pool.start("gguf", arguments, {"TMPDIR": str(tmp_path)})
        place = resolve(str(directory), data_dir=data, waits=Waits(waits.append))
        assert {wait.kind for wait in waits if wait} == {"converting"}, "it was told of"
        peer = node.wait_for("multiaddr")
        node.wait_for("ready")
        [made] = conversions.listed(data)
        assert made.path == place and Path(made.source).parent == directory and made.is_in_use
        assert not [*(data / "converted").glob(".*")], "one, and nothing beside it"
        with monkeypatch.context() as bare:
            bare.setitem(sys.modules, "gguf", None)  # not installed: so this cannot convert again
            asked = SwarmModelForCausalLM.from_pretrained(directory, peers=[peer], swarm="gguf", cache_dir=data)
        with asked:
            ids = asked.tokenizer(TEXT, return_tensors="pt").input_ids
            found = asked.generate(ids, **GREEDY).tolist()
    assert found == model.generate(ids, **GREEDY).tolist(), "the model that the file was made from"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file="tiny.gguf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file="tiny.gguf")
    assert found == theirs.generate(tokenizer(TEXT, return_tensors="pt").input_ids, **GREEDY).tolist()


def test_how_far_a_conversion_is_is_told(tmp_path: Path) -> None:
    """transformers names its bars, and another version may name them otherwise."""
    directory, _model = make_directory(tmp_path / "tiny")
    waits = list[Wait | None]()
    resolve(str(directory), data_dir=tmp_path / "data", waits=Waits(waits.append))
    told = [(wait.done, wait.total) for wait in waits if wait and wait.total]
    assert told[0] == (0, 90) and (60, 90) in told and told[-1] == (3, 3), (
        "30 tensors converted, then loaded, and one file written"
    )


@pytest.mark.usefixtures("stand_in")
def test_a_file_is_converted_once_and_again_if_it_was_changed(tmp_path: Path) -> None:
    directory, data, waits = tmp_path / "tiny", tmp_path / "data", list[Wait | None]()
    directory.mkdir()
    (directory / "tiny.gguf").write_bytes(b"one")
    first = gguf.checkpoint_of(directory, data, Waits(waits.append))
    assert (first / "config.json").read_text() == str(directory / "tiny.gguf") and first.name == "tiny"
    assert [wait.percent for wait in waits if wait] == [None, 25]
    written = (first / "config.json").stat().st_ino
    assert gguf.checkpoint_of(directory, data) == first and (first / "config.json").stat().st_ino == written
    stat = (directory / "tiny.gguf").stat()
    (directory / "tiny.gguf").write_bytes(b"other")
    os.utime(directory / "tiny.gguf", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (size := gguf.checkpoint_of(directory, data)) != first
    os.utime(directory / "tiny.gguf", (1, 1))
    assert gguf.checkpoint_of(directory, data) not in (first, size)


@pytest.mark.usefixtures("stand_in")
def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"one")
    stale = tmp_path / "data" / "converted" / ".unfinished-abc" / "tiny"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    place = gguf.checkpoint_of(tmp_path, tmp_path / "data")
    key = place.parent.name
    assert {path.name for path in stale.parents[1].iterdir()} == {key, f"{key}.lock", "lock"}


def test_a_conversion_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """kill -9 of the process that asked for it, while the converter runs: that ends, and removes what it has written."""
    directory, _model = make_directory(tmp_path / "tiny")
    program = (
        "import sys; from pathlib import Path as P; from swarm.checkpoints.gguf import *; checkpoint_of(*map(P, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, str(directory), str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        converters = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        _wait_until(lambda: bool(converters.read_text()))
        assert any((tmp_path / "data").glob("converted/.unfinished-*"))
        process.kill()
    _wait_until(lambda: [path.name for path in (tmp_path / "data" / "converted").iterdir()] == ["lock"])


def _wait_until(is_so: Callable[[], bool]) -> None:
    ends_at_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < ends_at_s
        time.sleep(0.02)


def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path) -> None:
    directory, _model = make_directory(tmp_path / "tiny")
    whole = (directory / "tiny.gguf").read_bytes()
    (directory / "tiny.gguf").write_bytes(whole[:-1000])
    message = refusal(CheckpointError, directory, tmp_path / "data")
    assert f"{directory}/tiny.gguf has {len(whole) - 1000} bytes" in message and "download it again" in message


def test_an_architecture_that_transformers_does_not_load_is_one_line(tmp_path: Path) -> None:
    directory, _model = make_directory(tmp_path / "tiny", "plamo")
    assert "of architecture 'plamo'" in refusal(ModelNotSupportedError, directory, tmp_path / "data")


def test_two_files_are_one_line(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert "2 GGUF files (a.gguf, b.gguf)" in refusal(CheckpointError, tmp_path, tmp_path / "data")


def test_without_its_packages_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "pip install '.[gguf]'" in refusal(ConfigError, tmp_path, tmp_path / "data")


def test_a_gguf_file_beside_safetensors_counts_for_nothing(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert resolve(str(tmp_path)) == tmp_path


def test_the_saved_dtype_holds_what_the_file_does() -> None:
    assert (
        saved_dtype({"F16"}) is torch.float16
        and saved_dtype({"BF16"}) is torch.bfloat16
        and saved_dtype({"F32"}) is torch.float32
    )
    assert saved_dtype({"Q4_1"}) is saved_dtype({"Q6_K", "F16"}) is saved_dtype({"F16", "BF16"}) is torch.float32


def refusal(kind: type[SwarmError], directory: Path, data: Path) -> str:
    """What it says; nothing is left of the attempt."""
    with pytest.raises(kind) as refused:
        resolve(str(directory), data_dir=data)
    assert "\n" not in str(refused.value) and not [path for path in data.glob("converted/*") if path.name != "lock"]
    return str(refused.value)
