"""What people may write for MODEL."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocols.errors import ModelNotFoundError
from swarm.models.resolve import resolve


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


def test_a_hub_name_says_that_both_places_were_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nobody answering at the Hub's address: one line, not a traceback of retries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="no such directory, and the Hugging Face Hub") as refusal:
        resolve("nobody/nothing", tmp_path)
    assert "\n" not in str(refusal.value)
