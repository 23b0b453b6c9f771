"""Units are stored as transformers stores the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from protocols.errors import BadRequestError, CheckpointError
from protocols.ids import Span
from protocols.units import Blocks, Ends
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.models.storing import read_tensors, stored_tensors, unit_tensors, write_tensors
from tests.families import FAMILIES, write_checkpoint


def checkpoint_of(name: str, directory: Path, *, tied: bool = False) -> Path:
    config = FAMILIES[name]()
    if tied:
        config.tie_word_embeddings = True
    return write_checkpoint(config, directory)


@pytest.mark.parametrize(
    ("name", "tied"),
    [
        ("llama", True),
        ("llama", False),
        ("qwen3_moe", False),
        ("mixtral", False),
        ("gpt2", False),
        ("deepseek_v3", False),
        ("bloom", False),
    ],
)
def test_units_together_are_what_save_pretrained_writes(name: str, tied: bool, tmp_path: Path) -> None:
    directory = checkpoint_of(name, tmp_path, tied=tied)
    checkpoint = open_checkpoint(directory)
    found: dict[str, torch.Tensor] = {}
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        own = load_parts(checkpoint, Span(start, stop), dtype=torch.float32)[1].tensors()
        unit = Blocks(start, stop)
        assert {key: value.shape for key, value in unit_tensors(checkpoint.config, unit).items()} == {
            k: v.shape for k, v in own.items()
        }
        found |= stored_tensors(checkpoint.config, unit, own)
    found |= stored_tensors(checkpoint.config, Ends(), load_ends(checkpoint, dtype=torch.float32).tensors())
    transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).save_pretrained(tmp_path / "again")
    expected = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def test_what_does_not_fit_a_unit_is_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(checkpoint_of("llama", tmp_path))
    own = load_parts(checkpoint, Span(1, 2), dtype=torch.float32)[1].tensors()
    name = next(iter(own))
    with pytest.raises(BadRequestError, match=f"'{name}' is on one side only"):
        stored_tensors(checkpoint.config, Blocks(1, 2), {key: value for key, value in own.items() if key != name})
    with pytest.raises(BadRequestError, match=f"{name} is torch.float32"):
        stored_tensors(checkpoint.config, Blocks(1, 2), {**own, name: torch.zeros(3)})


def test_a_file_comes_back_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}
    write_tensors(tmp_path / "x.safetensors", tensors)
    again = read_tensors(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)
    (tmp_path / "x.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match=r"cannot read .*x\.safetensors"):
        read_tensors(tmp_path / "x.safetensors")
