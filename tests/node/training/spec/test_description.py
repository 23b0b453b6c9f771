"""What --dry-run says is what the run's own parts take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from node.training.optimizer.choice import make_optimizer
from node.training.spec.description import Description, describe, lines
from node.training.spec.model_plan import plan_model
from node.training.spec.reading import read
from node.training.spec.resolving import spec_of
from protocols import runs
from protocols.errors import ConfigError
from protocols.units import Blocks, Ends
from tests.node.training.spec.files import write_run


def described(folder: Path, **overrides: str) -> Description:
    run = read(write_run(folder), {name.replace("__", "."): text for name, text in overrides.items()})
    return describe(run, plan_model(run))


def test_the_example_in_numbers(tmp_path: Path) -> None:
    """By hand: 6 blocks of 4 * 192² + 3 * 192 * 480 + 2 * 192, a tied table of 4,096 * 192 and a norm of 192."""
    found = described(tmp_path)
    block, ends = 4 * 192**2 + 3 * 192 * 480 + 2 * 192, 4_096 * 192 + 192
    assert [size.unit for size in found.units] == [*(Blocks(number, number + 1) for number in range(6)), Ends()]
    assert [size.num_parameters for size in found.units] == [block] * 6 + [ends]
    assert found.num_parameters == 6 * block + ends == 3_332_544
    assert found.units[0].training_bytes == 16 * block and found.training_bytes == 16 * 3_332_544  # two moments and a sum
    assert found.units[0].serving_bytes == found.units[0].averaging_bytes == 4 * block
    assert (found.spec.num_micro_batches, found.num_tokens) == (8, 500 * 8_192)
    assert found.hop_bytes == 8_192 * (2 * 4 * 192 + 8) and found.first_hop_bytes == 8_192 * 12
    assert found.kv_bytes_per_token == 2 * 192 * 4


@pytest.mark.parametrize("name", runs.OPTIMIZERS)
def test_memory_is_that_of_the_optimizers_own_state(name: str, tmp_path: Path) -> None:
    found = described(tmp_path, optimizer__name=name)
    plan = plan_model(found.run_file)
    for size in found.units:
        real = {key: torch.zeros(tensor.shape) for key, tensor in plan.units[size.unit].items()}
        state = make_optimizer(found.spec.optimizer).new_state(real, size.unit)
        held = [*real.values(), *(torch.zeros_like(tensor) for tensor in real.values()), *state.values()]
        assert size.training_bytes == sum(tensor.nbytes for tensor in held)


def test_codecs_and_muon_change_the_bytes_of_the_wire(tmp_path: Path) -> None:
    usual, tokens = described(tmp_path), 8_192
    assert described(tmp_path, training__activations="bfloat16").hop_bytes == tokens * (2 * 2 * 192 + 8)
    assert described(tmp_path, training__activations="int8").hop_bytes == tokens * (2 * (192 + 2 * 4) + 8)
    assert described(tmp_path, data__packing="false").hop_bytes == usual.hop_bytes - 4 * tokens
    assert described(tmp_path, averaging__codec="float16").averaging_bytes * 2 == usual.averaging_bytes
    muon = described(tmp_path, optimizer__name="muon")
    matrices = 4 * 192**2 + 3 * 192 * 480
    assert (
        muon.units[0].averaging_bytes == usual.units[0].averaging_bytes + 4 * matrices // 2
    )  # one replica computes half of them
    assert muon.units[-1] == usual.units[-1]


def test_the_spec_has_all_that_a_file_says_of_it(tmp_path: Path) -> None:
    """Each field of the signed spec comes from the field of the file that documents it, and local ones change nothing."""
    file = write_run(tmp_path)
    usual = spec_of(read(file), num_parameters=3_332_544)
    signed = {
        "name": ("verse", "name"),
        "seed": ("1", "seed"),
        "data.sequence_tokens": ("64", "data.sequence_tokens"),
        "data.packing": ("false", "data.packing"),
        "training.steps": ("501", "batch.steps"),
        "training.tokens": ("819200", "batch.steps"),
        "training.ratio": ("1", "batch.steps"),
        "training.batch_tokens": ("16384", "batch.batch_tokens"),
        "training.micro_batch_sequences": ("4", "batch.micro_batch_sequences"),
        "training.activations": ("int8", "activations"),
        "optimizer.lr": ("0.5", "optimizer.lr"),
        "schedule.shape": ("wsd", "schedule.shape"),
        "averaging.codec": ("int8", "averaging.codec"),
        "checkpoint.every_steps": ("1", "checkpoint_every"),
        "serving.every_versions": ("1", "serve_every"),
    }
    for name, (text, field) in signed.items():
        said = runs.difference(usual, spec_of(read(file, {name: text}), num_parameters=3_332_544))
        assert said is not None and said.startswith(f"{field} is "), name
    local = {"training.recompute": "always", "training.compute": "bfloat16", "evaluation.every_steps": "1",
             "data.validation": "x", "data.train": "y",
             "evaluation.samples": "x", "model.tokenizer": "elsewhere"}  # fmt: skip
    assert spec_of(read(file, local), num_parameters=3_332_544) == usual
    known = spec_of(read(file), num_parameters=3_332_544, data_digest="da" * 32, base="ba" * 32)
    assert (known.data.digest, known.base) == ("da" * 32, "ba" * 32) and runs.RunSpec.parse(known.canonical()) == known


def test_a_warm_up_longer_than_the_run_is_refused_once_its_length_is_known(tmp_path: Path) -> None:
    run = read(write_run(tmp_path), {"training.tokens": "8192"})
    with pytest.raises(ConfigError, match=r"'schedule\.warmup_steps' must be at most the 1 steps.*change it in the run file"):
        spec_of(run, num_parameters=1)
    with pytest.raises(ConfigError, match="steps of 8192; at most"):
        spec_of(read(write_run(tmp_path), {"training.ratio": "1e6"}), num_parameters=10**12)


def test_lines_say_every_field_that_is_set_and_each_kind_of_unit_once(tmp_path: Path) -> None:
    text = list(lines(described(tmp_path)))
    assert text[0] == "run prose: 500 steps, 4,096,000 tokens"
    for line in (
        "optimizer.betas = [0.9, 0.95]",
        "data.packing = true",
        'evaluation.samples = ["A list is"]',
        "averaging.deadline_s = 30.0",
    ):
        assert f"  {line}" in text
    assert any("decoder/0:1 … decoder/5:6" in line and "424,320" in line and "6.79 MB" in line for line in text)
    assert sum("decoder/" in line for line in text) == 2
    assert any("holds its own state (40 MB for all units) and at most as much of others'" in line for line in text)
    assert any("8,192 tokens in 8 micro-batches of 1,024" in line for line in text)


def test_blocks_of_other_sizes_have_lines_of_their_own(tmp_path: Path) -> None:
    found = described(tmp_path)
    units = (found.units[0], replace(found.units[1], num_parameters=7), *found.units[2:])
    assert sum("decoder/" in line for line in lines(replace(found, units=units))) == 4
