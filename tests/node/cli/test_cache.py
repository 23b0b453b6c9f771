"""`swarm cache` lists, removes and keeps the right files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from node.cli.app import main
from node.cli.machine.cache import Which, chosen
from protocols.errors import ConfigError
from protocols.ids import ModelId
from swarm.checkpoints import conversions
from swarm.weights.cache import CachedModel, ModelCache
from tests.swarm.weights.parts import Model, make_model


def fill(model: Model, data_dir: Path, *blocks: int) -> ModelCache:
    """What a node that hosts these blocks has on its disk."""
    made = ModelCache(data_dir / "weights", model.model, model.manifest)
    for shard in made.layout.shards_with(f"model.layers.{block}.norm.weight" for block in blocks):
        file = made.shard(shard)
        with file.locked():
            for tensor in shard.tensors:
                file.put_hashes(tensor, model.shelf().hashes(tensor))
                for piece in range(model.manifest.entries[tensor].num_pieces):
                    assert file.put(tensor, piece, model.shelf().piece(tensor, piece))
    return made


def swarm(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["cache", *words])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


def test_models_are_listed_and_those_in_use_are_never_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "source")
    held = fill(model, tmp_path, 1, 2)
    code, out, _ = swarm(capsys, "--json", "--data-dir", str(tmp_path))
    [row] = json.loads(out)["models"]
    assert (code, row["name"], row["digest"], row["blocks"], row["num_blocks"]) == (0, "tiny", model.model.digest, 2, 4)
    assert row["is_in_use"] and not row["is_complete"] and row["bytes"] > 6 << 20
    assert "tiny@" in swarm(capsys, "--data-dir", str(tmp_path))[1]

    code, out, err = swarm(capsys, "prune", "--all", "--yes", "--data-dir", str(tmp_path))
    assert code == 0 and out.startswith("removed 0") and "in use" in err and held.directory.exists()
    held.close()
    code, out, err = swarm(capsys, "prune", "--all", "--data-dir", str(tmp_path))
    assert code == 2 and "--yes" in err and held.directory.exists(), "there was no question, so nothing is removed"
    code, out, _ = swarm(capsys, "prune", model.model.digest[:8], "--yes", "--json", "--data-dir", str(tmp_path))
    assert code == 0 and len(json.loads(out)["removed"]) == 1 and not held.directory.exists()
    assert swarm(capsys, "prune", "tiny", "--yes", "--data-dir", str(tmp_path))[0] == 4
    assert swarm(capsys, "--data-dir", str(tmp_path))[1] == f"nothing was fetched or converted yet: no model in {tmp_path}\n"


def test_a_conversion_is_listed_and_removed_once_no_process_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models" / "smol" / "smol.gguf"
    place = conversions.place_of(_written(file, b"GGUF"), tmp_path)
    assert not conversions.use(place)
    _written(place / "model.safetensors", bytes(1 << 20))
    _written(place.parent / conversions.SOURCE, json.dumps({"file": str(file)}).encode())
    assert conversions.use(place)

    code, out, _ = swarm(capsys, "--json", "--data-dir", str(tmp_path))
    [row] = json.loads(out)["conversions"]
    assert (code, row["name"], row["path"], row["source"]) == (0, "smol", str(place), str(file))
    assert row["bytes"] >= 1 << 20 and row["is_in_use"] and json.loads(out)["models"] == []
    code, out, err = swarm(capsys, "prune", "smol", "--yes", "--data-dir", str(tmp_path))
    assert (
        code == 0 and out.startswith("removed 0") and f"smol (converted from {file}) is in use" in err and conversions.use(place)
    )

    os.close(conversions._held.pop(place))  # as at the end of the process
    os.utime(place.parent.with_suffix(".lock"), (0, time.time() - 3 * 86_400))
    assert "used 3 days ago" in swarm(capsys, "--data-dir", str(tmp_path))[1]
    assert swarm(capsys, "prune", "--older-than", "4", "--yes", "--data-dir", str(tmp_path))[1].startswith("removed 0")
    assert swarm(capsys, "prune", "smol@1234", "--yes", "--data-dir", str(tmp_path))[0] == 4, "a conversion has no digest"
    assert swarm(capsys, "prune", "--older-than", "2", "--yes", "--data-dir", str(tmp_path))[1].startswith("removed 1 model")
    assert not place.parent.exists() and file.exists() and not conversions.use(place)


def converted(tmp_path: Path) -> Path:
    """The place of a conversion that no process has used under a lock."""
    place = conversions.place_of(_written(tmp_path / "models" / "smol" / "smol.gguf", b"GGUF"), tmp_path)
    _written(place / "model.safetensors", bytes(1 << 20))
    _written(place.parent / conversions.SOURCE, b"{}")
    return place


@pytest.mark.parametrize("fault", [KeyboardInterrupt, PermissionError])
def test_a_removal_that_is_stopped_leaves_no_checkpoint_and_is_not_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    place = converted(tmp_path)
    [row] = conversions.listed(tmp_path)

    def stopped(_folder: Path, ignore_errors: bool = False) -> None:
        if fault is KeyboardInterrupt or not ignore_errors:
            raise fault

    monkeypatch.setattr("shutil.rmtree", stopped)
    with pytest.raises(fault):
        conversions.remove(row)
    assert not conversions.use(place) and conversions.listed(tmp_path) == []


@pytest.mark.parametrize("moment", ["before it is renamed", "while it is deleted"])
def test_a_removal_succeeds_although_a_conversion_clears_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    place, cleared = converted(tmp_path), list[Path]()
    [row] = conversions.listed(tmp_path)
    rmtree, mkdtemp = shutil.rmtree, tempfile.mkdtemp

    def clear() -> None:
        for stale in (tmp_path / "converted").glob(f"{conversions.PARTIAL}*"):
            rmtree(stale, ignore_errors=True)
            cleared.append(stale)

    def made(**how: Any) -> str:
        folder = mkdtemp(**how)
        clear()
        return folder

    def deleted(folder: Path, ignore_errors: bool = False) -> None:
        clear()
        rmtree(folder, ignore_errors=ignore_errors)

    if moment == "before it is renamed":
        monkeypatch.setattr("tempfile.mkdtemp", made)
    else:
        monkeypatch.setattr("shutil.rmtree", deleted)
    assert conversions.remove(row) and cleared
    assert not place.parent.exists() and not list((tmp_path / "converted").glob(f"{conversions.PARTIAL}*"))


def test_to_list_a_conversion_is_no_use_of_it(tmp_path: Path) -> None:
    place = converted(tmp_path)
    os.utime(place, (1, 1))
    assert [conversions.listed(tmp_path)[0].last_used_s for _look in range(2)] == [1, 1]


def _written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_variables_of_the_environment_remove_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "SWARM_YES": "true"})
    code, _, err = swarm(capsys, "prune", "--all", "--data-dir", str(tmp_path))
    assert code == 2 and "SWARM_YES" in err


def row(digit: str, gigabytes: float, used_s: float, *, in_use: bool = False) -> CachedModel:
    return CachedModel(
        model=ModelId("m" + digit, digit * 64), num_bytes=int(gigabytes * 1e9), blocks_here=1, num_blocks=1, is_complete=True,
        last_used_s=used_s, is_in_use=in_use,
    )  # fmt: skip


def test_what_goes_is_what_was_used_longest_ago() -> None:
    rows = [row("1", 2, 900_000), row("2", 3, 500_000), row("3", 4, 100, in_use=True), row("4", 1, 50)]

    def names(which: Which) -> list[str]:
        return [one.model.name for one in chosen(rows, which, 1_000_000)]

    assert names(Which(max_gb=10)) == []
    assert names(Which(max_gb=9.5)) == ["m4"]
    assert names(Which(max_gb=6.5)) == ["m4", "m2"]
    assert names(Which(older_than_days=5)) == ["m2", "m3", "m4"]
    assert names(Which(name="m2@222222")) == ["m2"]
    with pytest.raises(ConfigError, match="got 2 of them"):
        Which(all=True, max_gb=1)
