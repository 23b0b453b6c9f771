"""The model of a run is counted as transformers counts it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from node.training.spec.model_plan import check_frames, plan_model
from node.training.spec.model_size import default_vocabulary, llama_config, shape_of
from node.training.spec.reading import read
from node.training.spec.run_file import RunFile
from node.training.spec.vocabulary import Vocabulary, read_vocabulary
from protocols.errors import CheckpointError, ConfigError, ModelNotSupportedError
from protocols.units import Blocks, Ends
from tests.families import FAMILIES
from tests.node.training.spec.files import write_run, write_tokenizer


def run_with(folder: Path, config: dict[str, object] | str) -> RunFile:
    file = write_run(folder)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return read(file)


@pytest.mark.parametrize("size", [300_000, 1_000_000, 3_000_000, 3_300_000, 10_000_000, 124_000_000, 7_000_000_000])
def test_a_computed_llama_has_about_the_size_and_its_count_is_that_of_transformers(size: int) -> None:
    shape = shape_of(size)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**llama_config(shape, context_tokens=128)))
    assert shape.num_parameters == sum(tensor.numel() for tensor in model.parameters())
    assert abs(shape.num_parameters - size) <= 0.1 * size and shape.depth >= 2


def test_what_a_size_means_never_changes() -> None:
    """A run file with a size names one model: another rule would be another run under the same file."""
    found = {size: shape_of(size) for size in (1_000_000, 3_000_000, 10_000_000, 124_000_000)}
    assert {size: (shape.vocabulary, shape.width, shape.depth, shape.mlp_width) for size, shape in found.items()} == {
        1_000_000: (2_048, 128, 3, 384),
        3_000_000: (4_096, 192, 5, 512),
        10_000_000: (8_192, 320, 6, 896),
        124_000_000: (16_384, 832, 13, 2_240),
    }
    assert [default_vocabulary(size) for size in (100_000, 2_097_151, 2_097_153, 10**12)] == [512, 2_048, 4_096, 131_072]


def test_a_tokenizer_decides_the_vocabulary_of_a_computed_llama(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json", 1_000)
    plan = plan_model(read(file, {"model.size": "1M"}))
    assert plan.vocabulary == 1_024 and plan.raw_config["eos_token_id"] == 999
    assert abs(plan.num_parameters - 1_000_000) <= 100_000
    write_tokenizer(tmp_path / "tokenizer.json", 50_000)
    with pytest.raises(ConfigError, match=r"1000000 parameters are too few for a vocabulary of 50048.*give at least 6406144"):
        plan_model(read(file, {"model.size": "1M"}))


def test_a_run_longer_than_the_usual_context_gets_one_that_holds_it(tmp_path: Path) -> None:
    run = read(write_run(tmp_path), {"model.size": "1M", "data.sequence_tokens": "1024", "model.tokenizer": str(tmp_path)})
    assert plan_model(run).raw_config["max_position_embeddings"] == 1_024


def test_sequences_beyond_the_model_s_positions_are_refused(tmp_path: Path) -> None:
    config = FAMILIES["gpt2"]().to_dict()
    most = config["n_positions"]
    file = run_with(tmp_path, config)
    assert plan_model(dataclasses.replace(file, data=dataclasses.replace(file.data, sequence_tokens=most))).max_positions == most
    with pytest.raises(
        ConfigError, match=rf"data\.sequence_tokens is {2 * most}, but .*config\.json has positions for at most {most}"
    ):
        plan_model(dataclasses.replace(file, data=dataclasses.replace(file.data, sequence_tokens=2 * most)))


def test_a_micro_batch_that_fits_no_message_is_refused(tmp_path: Path) -> None:
    """64 MiB of float32 are 87,381 hidden states of width 192; a pass has at most 65,536 tokens."""
    file = write_run(tmp_path)

    def check(sequences: int, width: int = 192) -> None:
        batch = {"training.micro_batch_sequences": str(sequences), "training.batch_tokens": str(128 * sequences)}
        run = read(file, batch)
        check_frames(run, dataclasses.replace(plan_model(run), width=width))

    check(512)
    with pytest.raises(
        ConfigError, match=r"65664 tokens does not fit a message: .* 768 bytes .* at most 65536 do; lower training"
    ):
        check(513)
    with pytest.raises(ConfigError, match=r"4608 tokens .* 16384 bytes .* at most 4078 do"):
        check(36, width=4_096)


@pytest.mark.parametrize("name", ["bloom", "gemma3_text", "gpt2", "llama", "mamba", "opt", "qwen2", "qwen3_moe"])
def test_units_hold_every_parameter_of_a_family_once(name: str, tmp_path: Path) -> None:
    config = FAMILIES[name]()
    plan = plan_model(run_with(tmp_path, config.to_dict()))
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config)
    num_blocks = config.get_text_config(decoder=True).num_hidden_layers
    assert set(plan.units) == {Ends(), *(Blocks(number, number + 1) for number in range(num_blocks))}
    assert plan.num_parameters == sum(tensor.numel() for tensor in whole.parameters())


def test_a_half_precision_config_is_planned_in_float32(tmp_path: Path) -> None:
    config = json.loads((write_run(tmp_path).parent / "config.json").read_text())
    full, half = (plan_model(run_with(tmp_path, {**config, "dtype": dtype})) for dtype in ("float32", "bfloat16"))
    assert half.num_parameters == full.num_parameters == 3_332_544
    assert {tensor.dtype for unit in half.units.values() for tensor in unit.values()} == {torch.float32}


def test_a_tokenizer_beyond_the_config_is_refused(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json", 4_096)
    assert plan_model(read(file)).vocabulary == 4_096
    write_tokenizer(tmp_path / "tokenizer.json", 4_097)
    with pytest.raises(ConfigError, match=r"ids up to 4096, but .*config\.json has a vocabulary of 4096; .* at least 4097"):
        plan_model(read(file))


def test_a_checkpoint_on_this_disk_is_planned_by_its_config_and_another_one_by_what_peers_sent(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    here = plan_model(read(file, {"model.checkpoint": str(tmp_path)}))
    assert here.num_parameters == plan_model(read(file)).num_parameters
    elsewhere = read(file, {"model.checkpoint": f"smol@{'ab' * 32}"})
    with pytest.raises(ConfigError, match=r"is no directory here; give one .* swarm node --run "):
        plan_model(elsewhere)
    assert plan_model(elsewhere, here.raw_config).num_parameters == here.num_parameters


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ("{", ConfigError, "model.config: .*config.json is not JSON"),
        ({"model_type": "abacus"}, ModelNotSupportedError, "model type 'abacus' is unknown"),
        ({"model_type": "clip"}, ModelNotSupportedError, "no causal language model"),
        ({"model_type": "llama", "hidden_size": 1 << 30}, ConfigError, "hidden_size"),
        ({"model_type": "llama", "auto_map": {"AutoConfig": "evil.Evil"}}, ModelNotSupportedError, "auto_map"),
        ({"model_type": "llama", "hidden_size": "wide"}, CheckpointError, "no valid llama config"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 0}, (CheckpointError, ConfigError), "llama|no model"),
    ],
)
def test_a_config_that_no_model_can_be_made_of_is_refused(
    config: dict[str, object] | str, error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        plan_model(run_with(tmp_path, config))


def test_a_vocabulary_is_read_from_the_files_alone(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json", 7)
    assert read_vocabulary(tmp_path) == read_vocabulary(tmp_path / "tokenizer.json") == Vocabulary(7, 6)
    (tmp_path / "tokenizer_config.json").unlink()
    assert read_vocabulary(tmp_path) == Vocabulary(7, None)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]]}}')
    assert read_vocabulary(tmp_path).num_ids == 2
    for wrong in ("", "[]", "{}", '{"model": 3}', '{"model": {"vocab": {"a": "b"}}, "added_tokens": [3, {"id": true}]}'):
        (tmp_path / "tokenizer.json").write_text(wrong)
        with pytest.raises(ConfigError, match=r"model\.tokenizer: .*tokenizer\.json"):
            read_vocabulary(tmp_path)
    with pytest.raises(ConfigError, match=r"give a tokenizer\.json"):
        read_vocabulary(tmp_path / "absent")
