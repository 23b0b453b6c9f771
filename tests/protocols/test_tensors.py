"""Wire tensors are cut and joined as tensors, without torch.

And finite means finite.
"""

from __future__ import annotations

import math
import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import tensors
from protocols.errors import TensorFormatError
from protocols.tensors import WireTensor

KINDS = [("float32", "none"), ("bfloat16", "none"), ("float32", "float16"), ("int32", "none"), ("int64", "none")]


@st.composite
def wires(draw: st.DrawFn) -> WireTensor:
    dtype, codec = draw(st.sampled_from(KINDS))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    size = math.prod(shape) * tensors.ITEM_BYTES[dtype if codec == "none" else codec]
    data = draw(st.binary(min_size=size, max_size=size))
    return WireTensor(dtype, shape, codec, memoryview(data) if draw(st.booleans()) else data)


def same(one: WireTensor, other: WireTensor) -> bool:
    return (one.dtype, one.shape, one.codec, bytes(one.data)) == (other.dtype, other.shape, other.codec, bytes(other.data))


@given(wires(), st.lists(st.integers(0, 5), max_size=4))
def test_what_is_cut_anywhere_joins_to_what_it_was(wire: WireTensor, places: list[int]) -> None:
    edges = [0, *sorted(min(place, wire.shape[0]) for place in places), wire.shape[0]]
    pieces = [tensors.cut(wire, start, stop) for start, stop in pairwise(edges)]
    assert all(
        piece.shape == (stop - start, *wire.shape[1:]) for piece, start, stop in zip(pieces, edges, edges[1:], strict=False)
    )
    assert same(tensors.join(pieces), wire)


def test_a_cut_is_a_view_and_holds_the_right_entries() -> None:
    data = bytearray(struct.pack("<6i", *range(6)))
    wire = WireTensor("int32", (3, 2), "none", memoryview(data))
    middle = tensors.cut(wire, 1, 2)
    assert struct.unpack("<2i", middle.data) == (2, 3)
    data[8:12] = struct.pack("<i", 9)
    assert struct.unpack("<2i", middle.data) == (9, 3)
    memory_of_floats = WireTensor("int32", (3, 2), "none", memoryview(data).cast("i"))
    assert same(tensors.cut(memory_of_floats, 1, 2), middle)


@pytest.mark.parametrize("other", [("float32", (1, 3), "none"), ("float32", (1, 2), "float16"), ("int32", (1, 2), "none")])
def test_what_does_not_fit_together_is_refused(other: tuple[str, tuple[int, ...], str]) -> None:
    dtype, shape, codec = other
    size = math.prod(shape) * tensors.ITEM_BYTES[dtype if codec == "none" else codec]
    with pytest.raises(TensorFormatError, match="another kind"):
        tensors.join([WireTensor("float32", (1, 2), "none", bytes(8)), WireTensor(dtype, shape, codec, bytes(size))])


def decoded(dtype: str, data: bytes) -> list[float]:
    """The values, one by one, and not by way of the highest byte."""
    if dtype == "bfloat16":
        data, dtype = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2)), "float32"
    letter, size = {"float32": ("f", 4), "float16": ("e", 2)}[dtype]
    return [float(value) for value in struct.unpack(f"<{len(data) // size}{letter}", data)]


@settings(max_examples=300)
@given(
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.lists(st.sampled_from([0, 1, 0x7B, 0x7C, 0x7F, 0x80, 0xFB, 0xFC, 0xFF]), max_size=24),
)
def test_finite_is_what_every_value_is(dtype: str, letters: list[int]) -> None:
    size = tensors.ITEM_BYTES[dtype]
    data = bytes(letters[: len(letters) // size * size])
    wire = WireTensor(dtype, (len(data) // size,), "none", data)
    assert tensors.is_finite(wire) is all(map(math.isfinite, decoded(dtype, data)))


def test_the_largest_numbers_are_finite_and_so_are_integers() -> None:
    largest = struct.pack("<2f", 3.4e38, -3.4e38) * 1_000
    assert tensors.is_finite(WireTensor("float32", (2_000,), "none", largest))
    assert not tensors.is_finite(WireTensor("float32", (2_001,), "none", largest + struct.pack("<f", math.nan)))
    assert tensors.is_finite(WireTensor("int32", (1,), "none", b"\xff\xff\xff\x7f"))
