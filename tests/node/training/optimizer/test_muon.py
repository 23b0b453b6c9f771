"""Muon against torch's and a plain one; members that share work."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from node.training.optimizer.adamw import AdamW
from node.training.optimizer.muon import MOMENTUM, Muon
from node.training.optimizer.newton_schulz import orthogonalize
from protocols.errors import BadRequestError
from protocols.units import Blocks, Ends
from tests.node.training.optimizer.gradients import SHAPES, gradients, parameters, values

MATRIX, EXPERTS = "3.attn.q_proj.weight", "3.mlp.experts.gate_up_proj"
LR = 1e-2


def plain_newton_schulz(matrix: Tensor) -> Tensor:
    """The definition, in float64: p(X) = aX + b(XX')X + c(XX')(XX')X, five times."""
    x = matrix / matrix.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


def plain_muon(matrix: Tensor, means: list[Tensor]) -> Tensor:
    """Muon on one matrix in float64, with a momentum that sums; its direction is that of one that averages."""
    matrix, momentum = matrix.double(), torch.zeros_like(matrix, dtype=torch.float64)
    for mean in means:
        momentum = 0.95 * momentum + mean.double()
        update = plain_newton_schulz(mean.double() + 0.95 * momentum)
        matrix = matrix * (1 - LR * 0.1) - LR * 0.2 * math.sqrt(max(matrix.shape)) * update
    return matrix


def trained(optimizer: Muon | AdamW, unit: Blocks | Ends, versions: int = 10) -> dict[str, Tensor]:
    found = parameters()
    state = optimizer.new_state(found, unit)
    for version in range(versions):
        optimizer.step(found, state, gradients(version), version, LR)
    return found


def test_ten_steps_equal_a_plain_float64_muon_on_each_matrix_alone() -> None:
    found, start = trained(Muon(), Blocks(3, 4)), parameters()
    means = [gradients(version) for version in range(10)]
    plain = plain_muon(start[MATRIX], [mean[MATRIX] for mean in means])
    torch.testing.assert_close(found[MATRIX].double(), plain, rtol=1e-4, atol=1e-5)
    for expert in range(3):
        plain = plain_muon(start[EXPERTS][expert], [mean[EXPERTS][expert] for mean in means])
        torch.testing.assert_close(found[EXPERTS][expert].double(), plain, rtol=1e-4, atol=1e-5)


def test_ten_steps_equal_torchs_within_its_bfloat16() -> None:
    theirs = parameters()[MATRIX].requires_grad_()
    reference = torch.optim.Muon([theirs], lr=LR, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for version in range(10):
        theirs.grad = gradients(version)[MATRIX]
        reference.step()
    found, start = trained(Muon(), Blocks(3, 4))[MATRIX], parameters()[MATRIX]
    moved, torchs = found - start, theirs.detach() - start
    assert torch.linalg.vector_norm(moved - torchs) < 0.02 * torch.linalg.vector_norm(torchs)


def test_what_is_no_matrix_of_a_block_goes_as_with_adamw() -> None:
    muon, adamw = trained(Muon(), Blocks(3, 4)), trained(AdamW(), Blocks(3, 4))
    equal = {name for name in SHAPES if torch.equal(muon[name], adamw[name])}
    assert equal == SHAPES.keys() - {MATRIX, EXPERTS}
    of_ends = trained(Muon(), Ends())
    assert all(torch.equal(of_ends[name], adamw[name]) for name in SHAPES)  # embedding and head: no Muon


def test_members_that_share_the_updates_hold_the_bits_of_one_that_computes_all() -> None:
    muon, alone = Muon(), trained(Muon(), Blocks(3, 4))
    members = [(found, muon.new_state(found, Blocks(3, 4))) for found in (parameters(), parameters())]
    for version in range(10):
        mean, updates = gradients(version), {}
        shares = muon.assignments(members[0][1], 2)
        assert sorted(name for share in shares for name in share) == [MATRIX, EXPERTS] and all(shares)
        for (_, state), share in zip(members, shares, strict=True):
            before = {key: tensor.clone() for key, tensor in state.items()}
            updates |= {name: muon.compute_update(name, state, mean[name]) for name in share}
            assert all(torch.equal(before[key], tensor) for key, tensor in state.items())
        for found, state in members:
            muon.apply(found, state, mean, version, LR, updates)
    assert all(torch.equal(found[name], alone[name]) for found, _ in members for name in SHAPES)


def test_work_is_shared_by_cost_and_the_same_in_any_order_of_names() -> None:
    sizes = {"a.weight": (64, 64), "b.weight": (32, 64), "c.weight": (32, 64), "d.weight": (32, 64), "e.weight": (32, 64)}
    state = {MOMENTUM + name: torch.zeros(size) for name, size in sizes.items()}
    expected = (("a.weight",), ("b.weight", "c.weight", "d.weight", "e.weight"))
    assert Muon().assignments(state, 2) == Muon().assignments(dict(reversed(state.items())), 2) == expected
    assert Muon().assignments(state, 7)[5:] == ((), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda updates: updates.pop(MATRIX), "lack"),
        (lambda updates: updates.update(other=torch.zeros(1)), "superfluous"),
        (lambda updates: updates.update({MATRIX: updates[MATRIX].T}), "expected float32"),
        (lambda updates: updates.update({MATRIX: updates[MATRIX].double()}), "expected float32"),
        (lambda updates: updates[MATRIX].fill_(math.nan), "entry of size nan"),
        (lambda updates: updates[MATRIX].fill_(1e30), "entry of size 1"),
    ],
)
def test_a_wrong_update_of_a_peer_is_refused_before_anything_is_changed(change, message: str) -> None:  # type: ignore[no-untyped-def]
    muon, found, mean = Muon(), parameters(), gradients(0)
    state = muon.new_state(found, Blocks(3, 4))
    updates = {name: muon.compute_update(name, state, mean[name]) for name in (MATRIX, EXPERTS)}
    change(updates)
    with pytest.raises(BadRequestError, match=message):
        muon.apply(found, state, mean, 0, LR, updates)
    assert all(torch.equal(found[name], tensor) for name, tensor in parameters().items())
    assert not any(tensor.any() for tensor in state.values())


def test_singular_values_go_near_one_and_a_zero_gradient_moves_nothing() -> None:
    for shape in ((24, 60), (60, 24), (2, 16, 16)):
        found = torch.linalg.svdvals(orthogonalize(values(5, shape, 1e-3)))
        assert found.min() > 0.3 and found.max() < 1.3, found
    assert not orthogonalize(torch.zeros(4, 6)).any()
