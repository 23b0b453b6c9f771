"""A snapshot is a copy; its digest covers all of it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch

from protocols.errors import BadRequestError
from protocols.state import Form
from protocols.units import Blocks, Ends
from swarm.training.snapshot import UnitSnapshot, form_of

CHAIN = bytes(range(32))


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "parameter/3.bias": torch.randn(5, generator=draw),
        "parameter/3.weight": torch.randn(3, 5, generator=draw).t(),  # not contiguous
        "parameter/3.half": torch.randn(3, generator=draw).bfloat16(),
        "parameter/3.flags": torch.tensor([True, False, True]),
        "parameter/3.count": torch.tensor(7),
        "parameter/3.none": torch.empty(0, 4),
        "momentum/3.weight": torch.full((5, 3), -0.0),
    }


def made(**changes: torch.Tensor) -> UnitSnapshot:
    return UnitSnapshot.of(unit=Blocks(3, 4), version=7, chain=CHAIN, tensors={**tensors(), **changes})


def test_a_snapshot_holds_the_same_bits_and_is_no_view() -> None:
    own = tensors()
    snapshot = UnitSnapshot.of(unit=Blocks(3, 4), version=7, chain=CHAIN, tensors=own)
    assert snapshot.tensors.keys() == own.keys()
    for name, tensor in own.items():
        copy = snapshot.tensors[name]
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copy, tensor) and torch.equal(copy.signbit(), tensor.signbit()), name
        tensor.zero_()
    assert torch.equal(snapshot.tensors["parameter/3.bias"], tensors()["parameter/3.bias"])
    assert snapshot.kinds == ("momentum", "parameter")
    assert snapshot.kind("momentum").keys() == {"3.weight"}


def test_the_digest_is_that_of_the_header_and_the_bytes() -> None:
    snapshot = made()
    form = snapshot.form.canonical()
    text = f"murmuration state 1\ndecoder/3:4 7 {CHAIN.hex()} {len(form)}\n".encode()
    assert snapshot.digest == hashlib.sha256(text + form + snapshot.data.numpy().tobytes()).digest()
    assert made().digest == snapshot.digest
    others = [
        replace(made(), unit=Ends()),
        replace(made(), version=8),
        replace(made(), chain=bytes(32)),
        made(**{"parameter/3.bias": torch.zeros(5)}),
        made(**{"momentum/3.weight": torch.full((5, 3), 0.0)}),  # other bits, though equal
    ]
    assert len({other.digest for other in others} | {snapshot.digest}) == 6


def test_a_value_that_is_not_finite_is_named() -> None:
    assert made().first_odd() is None
    assert made(**{"parameter/3.bias": torch.tensor([0.0, float("nan"), 1.0])}).first_odd() == "parameter/3.bias"
    assert made(**{"momentum/3.weight": torch.tensor([-torch.inf])}).first_odd() == "momentum/3.weight"


def test_a_form_needs_no_values_and_odd_tensors_are_refused() -> None:
    assert form_of({name: tensor.to("meta") for name, tensor in tensors().items()}) == made().form
    assert Form.parse(made().form.canonical()) == made().form
    with pytest.raises(BadRequestError, match="complex64"):
        made(**{"parameter/3.odd": torch.zeros(2, dtype=torch.complex64)})
    with pytest.raises(BadRequestError, match="kind/name"):
        made(**{"weight": torch.zeros(2)})
