"""Fresh units are what transformers draws for the whole model."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from protocols.errors import ModelNotSupportedError
from protocols.units import Blocks, Ends
from swarm.models.fresh import FreshModel
from swarm.models.skeleton import model_class
from tests.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from family_configs import all_configurations  # noqa: E402

CONFIGS = {**{name: all_configurations()[name] for name in ("apertus", "zamba2")}, **FAMILIES}
NAMES = ("apertus", "falcon_h1", "gemma3_text", "gpt2", "llama", "mamba", "openai_gpt", "qwen3_moe")
"""apertus, openai_gpt: only constructors set some tensors; falcon_h1: the model puts buffers into its blocks; gpt2: scaled by depth."""


def draw_all(name: str, seed: int = 0) -> dict[str, Tensor]:
    model = FreshModel(CONFIGS[name]())
    return {key: tensor for unit in model.units for key, tensor in model.draw(unit, seed).items()}


def transformers_own(name: str, tmp_path: Path) -> dict[str, Tensor]:
    """What `save_pretrained` of a whole new model stores."""
    config = CONFIGS[name]()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = model_class(config)._from_config(copy.deepcopy(config), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    return dict(load_file(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_the_name_shape_and_spread_of_transformers_own(name: str, tmp_path: Path) -> None:
    ours, theirs = draw_all(name), transformers_own(name, tmp_path)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in ours.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in theirs.items()
    }
    drawn = 0
    for key, tensor in theirs.items():
        spread, count = float(tensor.std(correction=0)), tensor.numel()
        if spread == 0 or torch.equal(tensor, ours[key]):  # constants, and tables such as mamba's A_log
            assert torch.equal(ours[key], tensor), key
            continue
        drawn += 1
        assert abs(float(ours[key].std(correction=0)) - spread) < 6 * spread / math.sqrt(count), key
        assert abs(float(ours[key].mean() - tensor.mean())) < 9 * spread / math.sqrt(count), key
    assert drawn > len(theirs) / 4


def test_gpt2s_projections_are_scaled_by_the_depth_of_the_whole_model() -> None:
    """The config says 5 blocks; a model of this one block would draw with 0.02 / sqrt(2)."""
    drawn = FreshModel(CONFIGS["gpt2"]()).draw(Blocks(3, 4), 0)
    assert float(drawn["transformer.h.3.mlp.c_proj.weight"].std()) == pytest.approx(0.02 / math.sqrt(10), rel=0.03)
    assert float(drawn["transformer.h.3.mlp.c_fc.weight"].std()) == pytest.approx(0.02, rel=0.03)


def test_an_initialisation_that_reaches_from_the_model_into_its_blocks_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As decision_transformer's and imagegpt's: not by module, but once for the whole model."""
    own = LlamaPreTrainedModel._init_weights

    def reaching(self: PreTrainedModel, module: torch.nn.Module) -> None:
        own(self, module)
        if isinstance(module, PreTrainedModel):
            for name, parameter in module.named_parameters():
                if name.endswith("o_proj.weight"):
                    torch.nn.init.constant_(parameter, 0.5)

    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", reaching, raising=False)
    drawn = FreshModel(CONFIGS["llama"]()).draw(Blocks(3, 4), 0)
    assert bool((drawn["model.layers.3.self_attn.o_proj.weight"] == 0.5).all())
    assert float(drawn["model.layers.3.self_attn.q_proj.weight"].std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["gemma3_text", "mamba", "qwen3_moe"])
def test_a_unit_alone_has_the_bytes_that_it_has_among_all_whatever_was_drawn_before(name: str) -> None:
    among = draw_all(name)
    model = FreshModel(CONFIGS[name]())
    for unit in (Ends(), Blocks(3, 4), Blocks(1, 2)):
        torch.rand(17)
        state = torch.random.get_rng_state()
        for key, tensor in model.draw(unit, 0).items():
            assert torch.equal(tensor, among[key]), key
        assert torch.equal(torch.random.get_rng_state(), state)  # and it leaves the generator as it was


def test_seeds_and_units_differ() -> None:
    model = FreshModel(CONFIGS["llama"]())
    name = "model.layers.{}.mlp.up_proj.weight"
    first = model.draw(Blocks(0, 1), 0)[name.format(0)]
    assert not torch.equal(first, model.draw(Blocks(0, 1), 1)[name.format(0)])
    assert not torch.equal(first, model.draw(Blocks(1, 2), 0)[name.format(1)])


def test_names_and_shapes_are_known_without_memory_and_a_tied_head_is_left_out() -> None:
    config = CONFIGS["llama"]()
    config.tie_word_embeddings, config.vocab_size, config.num_hidden_layers = True, 1 << 40, 3  # 256 TiB
    model = FreshModel(config)
    assert model.units == (Blocks(0, 1), Blocks(1, 2), Blocks(2, 3), Ends())
    assert model.tensors[Ends()]["model.embed_tokens.weight"] == ("F32", (1 << 40, 64))
    assert "lm_head.weight" not in model.tensors[Ends()]
    assert model.draw(Blocks(2, 3), 0).keys() == model.tensors[Blocks(2, 3)].keys()


def test_blocks_that_share_weights_are_refused() -> None:
    with pytest.raises(ModelNotSupportedError, match="share weights"):
        FreshModel(CONFIGS["zamba2"]())
