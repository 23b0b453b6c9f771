"""What people may write for MODEL."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocols.errors import CheckpointError, ModelNotFoundError, SwarmError
from swarm.checkpoints import conversions
from swarm.checkpoints.resolve import check, resolve
from swarm.places import is_place, name_in_swarm


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    assert resolve(str(tmp_path / "model")) == tmp_path / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve("model") == resolve("./model/") == tmp_path / "model"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "a/b/c", "with space/name", "x" * 200])
def test_what_can_be_neither_directory_nor_hub_name_is_refused_at_once(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="directory"):
        resolve(name, tmp_path)


def test_a_file_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("model", "error", "why"),
    [
        ("./nowhere", ModelNotFoundError, "no directory or file './nowhere'"),
        ("/no/such/place", ModelNotFoundError, "check the path"),
        ("./empty", CheckpointError, "no config.json and no .gguf file"),
        ("bare/model.safetensors", ModelNotFoundError, "is a file; give the directory"),
        ("bare/", CheckpointError, "no config.json"),
        ("several", CheckpointError, "2 GGUF files .* give the one that you want: .*several/a.gguf"),
    ],
)
def test_what_is_no_model_is_told_before_anything_is_loaded(
    model: str, error: type[SwarmError], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("bare/model.safetensors", "several/a.gguf", "several/b.gguf", "whole/config.json", "one/tiny.gguf"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).touch()
    Path("empty").mkdir()
    with pytest.raises(error, match=why):
        check(model)
    for good in ("whole", "one", "one/tiny.gguf", "several/b.gguf", "empty", "a-name-in-the-swarm", "owner/name"):
        check(good)


def test_a_gguf_file_is_a_model_by_its_own_name(tmp_path: Path) -> None:
    """A folder of downloads holds several, and has a name that says nothing."""
    file = tmp_path / "downloads" / "SmolLM2-Q4.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    assert name_in_swarm(str(file)) == "SmolLM2-Q4" and name_in_swarm(str(file.parent)) == "downloads"
    place = conversions.place_of(file, tmp_path, file.stem)
    assert place.name == "SmolLM2-Q4" and place.parent != conversions.place_of(file, tmp_path).parent
    place.mkdir(parents=True)
    assert resolve(str(file), data_dir=tmp_path) == place


def test_a_hub_name_says_that_both_places_were_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer at the Hub's address: one line, not a traceback of retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelNotFoundError, match="no such directory, no peer that we know serves it, and the Hugging Face Hub"
    ) as refusal:
        resolve("nobody/nothing", tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_directory_has_one_name_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Node and client may be told of the same checkpoint in different ways, and must mean the same model."""
    real = tmp_path / "tiny-prose"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(real)
    assert {name_in_swarm(given) for given in (str(real), f"{real}/", ".", str(tmp_path / "link"))} == {"tiny-prose"}
    assert name_in_swarm("meta-llama/Llama-3-8B") == "meta-llama/Llama-3-8B"


def test_a_folder_without_a_model_hides_no_model_of_the_swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """examples/prose holds a run's text, and its run is called prose."""
    monkeypatch.chdir(tmp_path)
    for name, file in {
        "prose": "run.toml",
        "tiny": "config.json",
        "weights": "tiny.gguf",
        "run": "checkpoint-20/config.json",
    }.items():
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).touch()
    assert [is_place(name) for name in ("prose", "tiny", "weights", "run", "nothing")] == [False, True, True, True, False]
    assert [is_place(name) for name in ("./prose", f"{tmp_path}/prose", "prose/", "prose/run.toml")] == [True] * 4
