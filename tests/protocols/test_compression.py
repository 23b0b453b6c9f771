"""The tensor codec gives the same bits, or the stated error.

NaN, infinities and overflow are refused if they are forbidden.
"""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import compression, frame, tensors
from protocols.errors import TensorFormatError

FLOATS = ("float32", "float16", "bfloat16")
FINITE32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def there_and_back(tensor: torch.Tensor, codec: str = "none") -> torch.Tensor:
    """Through a frame, as a peer would get it."""
    wire = compression.pack(tensor, codec)
    received = frame.decode(frame.encode({"payload": wire.header()}, [wire.data]))
    return compression.unpack(tensors.parse(received.header["payload"], received.buffers))


@settings(max_examples=150)
@given(st.sampled_from(sorted(tensors.ITEM_BYTES)), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 2**31))
def test_codec_none_keeps_every_bit(name: str, shape: list[int], seed: int) -> None:
    size = torch.Size(shape).numel() * tensors.ITEM_BYTES[name]
    noise = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tensor = noise.view(getattr(torch, name)).reshape(shape)  # any bits, NaN among them
    again = there_and_back(tensor)
    assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(again.reshape(-1).view(torch.uint8), noise)


def bound(values: torch.Tensor, codec: str) -> torch.Tensor:
    """What the docstring of compression.py promises, in float64."""
    relative, absolute = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}[codec]
    return (values.double().abs() * relative).clamp_min(absolute)


@settings(max_examples=300)
@given(st.sampled_from(["float16", "bfloat16"]), st.sampled_from(FLOATS), st.lists(FINITE32, max_size=20))
def test_a_lossy_codec_keeps_its_bound_or_refuses(codec: str, name: str, numbers: list[float]) -> None:
    tensor = torch.tensor(numbers, dtype=torch.float32).to(getattr(torch, name))
    tensor = tensor[tensor.isfinite()]  # the cast to float16 may have overflowed
    largest = float(tensor.abs().amax()) if len(tensor) else 0.0
    limit = min(torch.finfo(getattr(torch, codec)).max, {"float16": 65_280.0}.get(name, 1e39))
    try:
        again = there_and_back(tensor, codec)
    except TensorFormatError:
        assert largest > limit
        return
    assert largest <= torch.finfo(getattr(torch, codec)).max
    assert again.dtype == tensor.dtype and again.shape == tensor.shape
    assert ((again.double() - tensor.double()).abs() <= bound(tensor, codec)).all()


@pytest.mark.parametrize("codec", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FLOATS)
def test_every_half_precision_value_keeps_the_bound(codec: str, name: str) -> None:
    """All 65,536 float16 values and all 65,536 bfloat16 values, as far as dtype and codec can hold them."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    both = torch.cat([bits.view(torch.float16).float(), bits.view(torch.bfloat16).float()])
    tensor = both[both.isfinite() & (both.abs() <= (65_280 if "float16" in (codec, name) else 3e38))].to(getattr(torch, name))
    assert len(tensor) > 100_000 or "float16" in (codec, name)
    again = there_and_back(tensor, codec)
    assert ((again.double() - tensor.double()).abs() <= bound(tensor, codec)).all()
    if codec == name:
        assert torch.equal(again, tensor)


def test_the_bounds_are_tight() -> None:
    """A bound that no value comes near would hide a worse codec."""
    halfway16, halfway_b16 = torch.tensor([1 + 2.0**-11]), torch.tensor([1 + 2.0**-8])
    assert float(halfway16 - there_and_back(halfway16, "float16")) == 2.0**-11
    assert float(halfway_b16 - there_and_back(halfway_b16, "bfloat16")) == 2.0**-8
    assert float(there_and_back(torch.tensor([2.0**-25]), "float16")) == 0.0


def test_sizes_are_as_stated() -> None:
    tensor = torch.ones(3, 5)
    assert [len(compression.pack(tensor, codec).data) for codec in tensors.CODECS] == [60, 30, 30, 3 * (4 + 5)]


@pytest.mark.parametrize(("codec", "dtype", "value"), [
    ("float16", torch.float32, 65_504.01), ("float16", torch.float32, -65_519.0), ("float16", torch.bfloat16, 65_536.0),
    ("float16", torch.float32, 3e38), ("bfloat16", torch.float32, 3.4e38), ("bfloat16", torch.float16, 65_504.0),
])  # fmt: skip
def test_overflow_is_refused_with_the_value(codec: str, dtype: torch.dtype, value: float) -> None:
    with pytest.raises(TensorFormatError, match=r"holds .* values up to .* use codec none"):
        compression.pack(torch.tensor([0.0, value], dtype=dtype), codec)


def test_the_largest_values_pass() -> None:
    assert there_and_back(torch.tensor([65_504.0, -65_504.0]), "float16").tolist() == [65_504.0, -65_504.0]
    largest = torch.finfo(torch.bfloat16).max
    assert there_and_back(torch.tensor([largest]), "bfloat16").tolist() == [largest]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FLOATS)
def test_values_that_are_not_finite_are_refused_where_forbidden(bad: float, name: str) -> None:
    tensor = torch.tensor([1.0, bad], dtype=getattr(torch, name))
    for codec in ("float16", "bfloat16"):
        with pytest.raises(TensorFormatError, match="NaN or infinity"):
            compression.pack(tensor, codec)
    with pytest.raises(TensorFormatError, match="NaN or infinity"):
        compression.pack(tensor, finite=True)
    with pytest.raises(TensorFormatError, match="NaN or infinity"):
        compression.unpack(compression.pack(tensor), finite=True)
    assert torch.equal(compression.unpack(compression.pack(tensor)).isfinite(), tensor.isfinite())


def test_a_peer_cannot_smuggle_nan_through_a_lossy_codec() -> None:
    smuggled = tensors.WireTensor("float32", (1,), "float16", bytes.fromhex("007e"))
    with pytest.raises(TensorFormatError, match="NaN or infinity"):
        compression.unpack(smuggled)


def test_integers_pass_finite_and_no_lossy_codec() -> None:
    tokens = torch.tensor([1, 2**62, -5])
    assert torch.equal(compression.unpack(compression.pack(tokens, finite=True), finite=True), tokens)
    with pytest.raises(TensorFormatError, match="packs floats, not int64"):
        compression.pack(tokens, "float16")
    with pytest.raises(TensorFormatError, match="packs floats"):
        tensors.WireTensor("int32", (2,), "float16", bytes(4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.uint8, torch.complex64])
def test_other_dtypes_do_not_travel(dtype: torch.dtype) -> None:
    with pytest.raises(TensorFormatError, match="cannot pack"):
        compression.pack(torch.zeros(2, dtype=dtype))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(TensorFormatError, match="codec 'int4'"):
        compression.pack(torch.zeros(2), "int4")


def test_a_tensor_of_five_dimensions_is_refused_before_it_is_sent() -> None:
    with pytest.raises(TensorFormatError, match="at most 4 dimensions"):
        compression.pack(torch.zeros(1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "tensor", [torch.randn(6, 4).t(), torch.randn(8)[::2], torch.randn(4, 1).expand(4, 3), torch.randn(3, requires_grad=True)]
)
def test_views_travel_as_what_they_show(tensor: torch.Tensor) -> None:
    assert torch.equal(there_and_back(tensor), tensor)


def test_unpacking_received_bytes_neither_warns_nor_shares_them() -> None:
    """A tensor over a received frame would let a hop write into what it keeps for replays."""
    wire = tensors.WireTensor("float32", (2,), "none", memoryview(bytes(8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compression.unpack(wire).add_(1)
        assert bytes(wire.data) == bytes(8)
        compression.unpack(tensors.WireTensor("float32", (2,), "float16", bytes(4)))


def test_unpacking_our_own_memory_copies_nothing() -> None:
    tensor = torch.zeros(4)
    compression.unpack(compression.pack(tensor)).add_(1)
    assert tensor.tolist() == [1, 1, 1, 1]


def test_a_wire_tensor_is_as_long_as_it_says() -> None:
    cases: list[tuple[str, tuple[int, ...], Any]] = [
        ("float32", (2,), bytes(7)),
        ("float32", (0, 1 << 24), b"x"),
        ("int64", (1,), bytes(4)),
    ]
    for dtype, shape, data in cases:
        with pytest.raises(TensorFormatError, match="bytes, got"):
            tensors.WireTensor(dtype, shape, "none", data)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FLOATS), st.integers(1, 3), st.integers(1, 300), st.integers(-130, 128), st.integers(0, 2**31))
def test_int8_is_within_a_253rd_of_the_largest_of_a_block(name: str, rows: int, width: int, exponent: int, seed: int) -> None:
    numbers = torch.randn(1, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    tensor = (numbers * 2.0**exponent).to(getattr(torch, name))
    if not tensor.isfinite().all() or float(tensor.double().abs().amax()) > 2.9e38:
        with pytest.raises(TensorFormatError):
            there_and_back(torch.full((1, 2), 3.3e38), "int8")
        return
    again = there_and_back(tensor, "int8")
    assert again.dtype == tensor.dtype and again.shape == tensor.shape
    rounding = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}[name]
    least = {"float32": 1.5e-36, "float16": 2.0**-24, "bfloat16": 1.5e-36}[name]  # 2**-24: float16 has no smaller steps
    for start in range(0, width, tensors.BLOCK):
        before, after = (one[..., start : start + tensors.BLOCK].double() for one in (tensor, again))
        most = before.abs().amax(dim=-1, keepdim=True)
        assert ((after - before).abs() <= most / 253.9 + most * rounding + least).all()


def test_int8_is_cut_and_joined_by_vectors_and_its_scales_are_checked() -> None:
    values = torch.randn(5, 3, 200, generator=torch.Generator().manual_seed(1))
    wire = compression.pack(values, "int8")
    assert wire.num_bytes == 5 * 3 * (200 + 8) and tensors.is_finite(wire)
    cuts = [tensors.cut(wire, start, stop) for start, stop in ((0, 2), (2, 5))]
    assert torch.equal(compression.unpack(cuts[1]), compression.unpack(wire)[2:])
    assert tensors.join(cuts).data == bytes(wire.data)
    for bad in (b"\0\0\xc0\x7f", b"\xff\xff\x7f\x7f"):  # NaN, and a scale that overflows
        broken = bytearray(wire.data)
        broken[208:212] = bad
        damaged = tensors.WireTensor("float32", (5, 3, 200), "int8", bytes(broken))
        assert not tensors.is_finite(damaged)
        with pytest.raises(TensorFormatError):
            compression.unpack(damaged)
    with pytest.raises(TensorFormatError, match="vectors"):
        compression.pack(values.flatten(), "int8")
