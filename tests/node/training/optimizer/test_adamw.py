"""AdamW: equal to torch's, however tensors are cut."""

from __future__ import annotations

import pytest
import torch

from node.training.optimizer import elementwise
from node.training.optimizer.adamw import AdamW
from protocols.errors import BadRequestError
from protocols.units import Blocks
from tests.node.training.optimizer.gradients import SHAPES, gradients, parameters

DECAYED = {"3.attn.q_proj.weight", "3.mlp.experts.gate_up_proj"}


def test_fifty_steps_equal_torchs() -> None:
    ours, theirs = parameters(), {name: tensor.requires_grad_() for name, tensor in parameters().items()}
    optimizer = AdamW(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state = optimizer.new_state(ours, Blocks(3, 4))
    groups = [{"params": [theirs[name]], "weight_decay": 0.1 if name in DECAYED else 0.0} for name in SHAPES]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for version in range(50):
        mean = gradients(version)
        for name, tensor in theirs.items():
            tensor.grad = mean[name].clone()
        optimizer.step(ours, state, mean, version, 1e-2)
        reference.step()
    for name in SHAPES:
        assert not torch.equal(ours[name], parameters()[name]), name
        error = torch.linalg.vector_norm(ours[name] - theirs[name]) / torch.linalg.vector_norm(theirs[name])
        assert error < 1e-6, (name, error)


def test_the_size_of_a_chunk_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def stepped() -> dict[str, torch.Tensor]:
        values = parameters()
        state = AdamW().new_state(values, Blocks(3, 4))
        AdamW().step(values, state, gradients(0), 0, 1e-2)
        return values | state

    whole = stepped()
    monkeypatch.setattr(elementwise, "CPU_CHUNK_VALUES", 7)
    monkeypatch.setattr(elementwise, "CHUNK_VALUES", 7)
    assert all(torch.equal(whole[key], tensor) for key, tensor in stepped().items())


def test_an_update_of_a_matrix_is_refused_before_anything_is_changed() -> None:
    values = parameters()
    state = AdamW().new_state(values, Blocks(3, 4))
    with pytest.raises(BadRequestError, match="no matrix updates"):
        AdamW().apply(values, state, gradients(0), 0, 1e-2, {"3.attn.q_proj.weight": values["3.attn.q_proj.weight"]})
    assert all(torch.equal(values[name], tensor) for name, tensor in parameters().items())
