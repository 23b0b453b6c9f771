"""What `open_checkpoint` accepts, and how it refuses everything else.

It refuses by name, with the expected size, before memory is taken.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from protocols.errors import CheckpointError, ModelNotSupportedError, SwarmError
from swarm.checkpoints.stored import read_header
from swarm.models.checkpoint import open_checkpoint
from tests.families import Checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def sharded(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A llama in several files, free to be damaged."""
    return Path(shutil.copytree(checkpoints("llama", "60KB"), tmp_path / "model"))


def edit_config(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_a_sharded_checkpoint_is_described_without_reading_weights(sharded: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    assert (checkpoint.name, checkpoint.num_blocks, checkpoint.hidden_size) == ("model", 5, 64)
    assert (checkpoint.vocab_size, checkpoint.max_positions) == (256, 256)
    assert len({info.file for info in checkpoint.tensors.values()}) > 5
    info = checkpoint.tensors["model.layers.3.self_attn.q_proj.weight"]
    assert (info.dtype, info.shape, info.stop - info.start) == ("F32", (64, 64), 64 * 64 * 4)
    assert checkpoint.block_of(info.name) == 3
    assert checkpoint.block_of("model.embed_tokens.weight") is None


def test_sequences_end_where_a_rotary_table_changes_for_all_its_neighbours(sharded: Path) -> None:
    factors = {
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    for kind, limit in (("longrope", 32), ("llama3", 256)):
        table = {"rope_type": kind, "rope_theta": 10_000.0, "original_max_position_embeddings": 32, **factors}
        edit_config(sharded, lambda config, table=table: config.update(rope_parameters=table))  # type: ignore[misc]
        assert open_checkpoint(sharded).max_positions == limit


def test_a_missing_shard_is_named_with_its_size(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    data = sum(info.stop - info.start for info in read_header(shards[2]).values())
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=rf"{shards[2].name} is missing .*{data} bytes"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("cut", [1, 1000, 10**9])
def test_a_truncated_shard_is_named_with_the_expected_size(sharded: Path, cut: int) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[: max(0, len(data) - cut)])
    expected = len(data) if cut < 2000 else 8  # of an empty file not even the header's length is known
    with pytest.raises(CheckpointError, match=rf"{shard.name} has \d+ bytes, expected (at least )?{expected}"):
        open_checkpoint(sharded)


def test_a_shard_with_bytes_behind_its_data_is_refused(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="too long"):
        open_checkpoint(sharded)


def header_with(entry: Any) -> bytes:
    header = json.dumps(entry).encode() if not isinstance(entry, bytes) else entry
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 99) + b"{}",
        header_with(b"[1, 2]"),
        header_with(b"\xff\xfe nonsense"),
        header_with(b"[" * 100_000),
        header_with({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}),
        header_with({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        header_with({"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 6]}}),
        header_with({"a": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}),
        header_with({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        header_with({"a": {"dtype": "F32", "shape": [1]}}),
        header_with({"a": 5}),
    ],
    ids=range(14),
)
def test_a_damaged_header_is_one_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_that_points_elsewhere_is_refused(sharded: Path, name: str) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = name
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="plain"):
        open_checkpoint(sharded)


def test_an_index_that_names_an_absent_tensor_is_refused(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.ghost.weight"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.ghost\.weight"):
        open_checkpoint(sharded)


def test_pickled_weights_are_never_loaded(sharded: Path) -> None:
    for file in sharded.glob("*.safetensors*"):
        file.unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickle"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"num_hidden_layers": 10**9}, CheckpointError, "num_hidden_layers"),
        ({"num_hidden_layers": 6}, CheckpointError, "block 5"),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers"),
        ({"num_hidden_layers": "many"}, CheckpointError, "config"),
        ({"hidden_size": 1 << 18}, CheckpointError, "hidden_size"),
        ({"vocab_size": 1 << 23}, CheckpointError, "vocab_size"),
        ({"num_attention_heads": 1 << 20}, CheckpointError, "num_attention_heads"),
        ({"num_local_experts": 1 << 20}, CheckpointError, "num_local_experts"),
        ({"anything": 1 << 50}, CheckpointError, "anything"),
        ({"max_position_embeddings": 1 << 40}, CheckpointError, "max_position_embeddings"),
        ({"initializer_range": float("nan")}, CheckpointError, "initializer_range"),
        ({"extra": [[]] * 300_000}, CheckpointError, "values"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, ModelNotSupportedError, "auto_map"),
        ({"quantization_config": {"quant_method": "gptq"}}, ModelNotSupportedError, "quantized"),
        ({"attn_implementation": "stranger/kernel"}, ModelNotSupportedError, "stranger/kernel"),
        ({"_attn_implementation": "stranger/kernel"}, ModelNotSupportedError, "stranger/kernel"),
        ({"kernel_config": {"a": "b"}}, ModelNotSupportedError, "kernel_config"),
        ({"model_type": "perceptron"}, ModelNotSupportedError, "perceptron"),
        ({"model_type": None}, CheckpointError, "names no model_type"),
        ({"model_type": "zamba"}, SwarmError, "zamba|shar"),
    ],
)
def test_a_strangers_config_is_bounded_before_anything_is_built(
    sharded: Path, change: dict[str, Any], error: type[SwarmError], words: str
) -> None:
    edit_config(sharded, lambda config: config.update(change))
    with pytest.raises(error, match=words) as refusal:
        open_checkpoint(sharded)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 900


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a":' * 40 + "1" + "}" * 40, "\x00\xff"])
def test_a_config_that_is_no_config_is_one_typed_error(sharded: Path, text: str) -> None:
    (sharded / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(sharded)


def test_a_directory_without_config_says_what_it_expects(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)


def test_an_encoder_decoder_checkpoint_is_refused_but_its_decoder_alone_is_a_model(tmp_path: Path) -> None:
    sizes = dict(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2
    )
    config = transformers.BartConfig(**sizes, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64)
    transformers.BartForConditionalGeneration(config).save_pretrained(tmp_path / "both")
    with pytest.raises(ModelNotSupportedError, match="encoder-decoder"):
        open_checkpoint(tmp_path / "both")
    transformers.BartForCausalLM(config).save_pretrained(tmp_path / "decoder")
    assert open_checkpoint(tmp_path / "decoder").num_blocks == 2


def test_a_text_model_is_found_beside_a_heavier_image_tower(tmp_path: Path) -> None:
    """What counts is the name of the blocks' prefix; a tower of more weight would otherwise be taken for the model."""
    text = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8)
    image = dict(hidden_size=96, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    config = transformers.Gemma3Config(text_config=text, vision_config=image)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert "vision" not in checkpoint.block_prefix
    assert checkpoint.block_values[0] < 10_000
