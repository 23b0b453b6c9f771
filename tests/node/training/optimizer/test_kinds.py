"""Which parameters get weight decay, and which are Muon's."""

from __future__ import annotations

import pytest

from node.training.optimizer.kinds import gets_weight_decay, is_matrix
from protocols.units import Blocks, Ends

BLOCK = Blocks(0, 1)


@pytest.mark.parametrize(
    ("name", "shape", "decays", "is_muons"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (64, 32), True, True),
        ("transformer.h.0.attn.c_attn.weight", (32, 96), True, True),
        ("model.layers.0.mlp.experts.down_proj", (4, 32, 64), True, True),
        ("model.layers.0.mlp.experts.down_proj_bias", (4, 32), False, False),
        ("model.layers.0.mlp.gate.weight", (4, 32), True, True),
        ("backbone.layers.0.mixer.A_log", (64, 16), False, False),
        ("backbone.layers.0.mixer.conv1d.weight", (64, 1, 4), True, False),
        ("rwkv.blocks.0.attention.time_mix_key", (1, 1, 32), False, False),
        ("model.layers.0.input_layernorm.weight", (32,), False, False),
        ("model.layers.0.self_attn.q_proj.bias", (64,), False, False),
        ("model.layers.0.self_attn.relative_attention_bias.weight", (32, 8), True, False),
        ("model.layers.0.gate.weight", (1, 32), False, False),
    ],
)
def test_parameters_of_a_block(name: str, shape: tuple[int, ...], decays: bool, is_muons: bool) -> None:
    assert (gets_weight_decay(name, shape), is_matrix(name, shape, BLOCK)) == (decays, is_muons)


def test_embedding_and_head_decay_and_are_adamws() -> None:
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert gets_weight_decay(name, (100, 32)) and not is_matrix(name, (100, 32), Ends())
