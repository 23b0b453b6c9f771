"""Torch tensors to wire tensors and back, by a codec.

Each codec states its error. The only file of this package that knows torch.

    codec      bytes a value   error of one value x that was packed (u = |x - unpacked|)
    none       its dtype's     0: the same bits, NaN and infinities included (refused with `finite=True`)
    float16    2               u <= |x| / 2**11, or 2**-25 where |x| < 2**-14; |x| > 65504 is refused
    bfloat16   2               u <= |x| / 2**8, or 2**-134 where |x| < 2**-126; what would round to infinity is refused
    int8       1 + 4 / 128     u <= m / 253.9 for a block whose largest magnitude is m, or 1.5e-36 where m is below that, and beside it
                               the rounding of x to a float16 or bfloat16 tensor; m > 2.97e38 is refused

A block of int8 is 128 consecutive values of a vector (the last dimension), and has one float32 scale; a vector is its scales and then its
codes, all little-endian. Lossy codecs take float32, float16 or bfloat16 and give the same dtype back; they refuse NaN and infinities at
both ends, since a peer that averages or caches one never gets rid of it. Packing what is already in the codec's dtype loses nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from protocols.errors import TensorFormatError
from protocols.tensors import BLOCK, CODECS, ITEM_BYTES, LARGEST_SCALE, WireTensor, num_scales

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_SMALLEST_SCALE = 2.0**-126
"""Below it, a float32 has fewer digits: such a block becomes zeros."""


def pack(tensor: torch.Tensor, codec: str = "none", *, finite: bool = False) -> WireTensor:
    """Values of `tensor` as bytes on the CPU, row-major.

    With codec none the data share the memory of a contiguous CPU tensor: encode the frame before you change the tensor.
    TensorFormatError for a dtype that does not travel, NaN or infinities where forbidden, and overflow of the codec.
    """
    name = _NAMES.get(tensor.dtype)
    if name is None or codec not in CODECS:
        raise TensorFormatError(
            f"cannot pack {tensor.dtype} by codec {codec[:20]!r}; known: {', '.join(ITEM_BYTES)}; {', '.join(CODECS)}"
        )
    values = tensor.detach() if tensor.requires_grad else tensor
    if codec == "none":
        if finite:
            _refuse_non_finite(values, codec)
        return WireTensor(name, tuple(values.shape), codec, _bytes_of(values))
    if not values.is_floating_point():
        raise TensorFormatError(f"codec {codec} packs floats, not {name}")
    if codec == "int8":
        return WireTensor(name, tuple(values.shape), codec, _bytes_of(_rows_of_codes(values)))
    return WireTensor(name, tuple(values.shape), codec, _bytes_of(_narrowed(values, codec)))


def unpack(
    wire: WireTensor, device: str | torch.device = "cpu", *, finite: bool = False, shape: tuple[int, ...] | None = None
) -> torch.Tensor:
    """The tensor on `device`, free to be changed: it shares memory with a writable buffer only, never with received bytes.

    shape: another one of as many values, where that spares the caller an operation.

    TensorFormatError if a lossy codec, or `finite=True`, forbids the NaN or infinity that was sent.
    """
    lossy, dtype, shape = wire.codec != "none", _DTYPES[wire.dtype], wire.shape if shape is None else shape
    if wire.num_bytes == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    if wire.codec == "int8":
        return _of_codes(wire).view(shape).to(device=device, dtype=dtype)
    stored = _DTYPES[wire.codec] if lossy else dtype
    view = memoryview(wire.data)
    # torch cannot mark a tensor read-only: sharing would let a hop write into the frame that it keeps for replays
    values = torch.frombuffer(bytearray(view) if view.readonly else view, dtype=stored).view(shape)
    if lossy or finite:
        _refuse_non_finite(values, wire.codec)
    return values if device == "cpu" and stored is dtype else values.to(device=device, dtype=dtype)


def _narrowed(values: torch.Tensor, codec: str) -> torch.Tensor:
    """`values` in the codec's dtype, if every one survives the way there and back."""
    _refuse_non_finite(values, codec)
    stored = values.to(_DTYPES[codec])
    largest = float(values.abs().amax()) if values.numel() else 0.0
    if largest > torch.finfo(stored.dtype).max or not stored.to(values.dtype).isfinite().all():
        raise TensorFormatError(
            f"codec {codec} holds {values.dtype} values up to {torch.finfo(stored.dtype).max:g}, got {largest:g}; use codec none"
        )
    return stored


def _rows_of_codes(values: torch.Tensor) -> torch.Tensor:
    """uint8 [vectors, scales and codes]."""
    if values.dim() < 2:
        raise TensorFormatError(f"codec int8 packs vectors: tensors of 2 dimensions or more, got {list(values.shape)}")
    _refuse_non_finite(values, "int8")
    width = values.shape[-1]
    if not values.numel():
        return torch.empty(0, dtype=torch.uint8)
    rows = values.float().reshape(-1, width)
    if (largest := float(rows.abs().amax())) > 127 * LARGEST_SCALE:
        raise TensorFormatError(f"codec int8 holds values up to {127 * LARGEST_SCALE:g}, got {largest:g}; use codec none")
    blocks = torch.nn.functional.pad(rows, (0, -width % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(dim=2) / 127
    scales.mul_(scales >= _SMALLEST_SCALE)
    codes = (blocks / scales.clamp_min(_SMALLEST_SCALE)[..., None]).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat([scales.view(torch.uint8), codes.flatten(1)[:, :width].contiguous().view(torch.uint8)], dim=1)


def _of_codes(wire: WireTensor) -> torch.Tensor:
    """float32 [vectors, width]; multiplying by a float32 scale rounds once, so equal bytes are equal values on every machine."""
    width = wire.shape[-1]
    blocks, size = num_scales(width), 4 * num_scales(width)
    packed = torch.frombuffer(bytearray(wire.data), dtype=torch.uint8).view(-1, size + width)
    scales = torch.empty(len(packed), blocks)
    scales.view(torch.uint8).copy_(packed[:, :size])
    codes = torch.nn.functional.pad(packed[:, size:].contiguous().view(torch.int8), (0, -width % BLOCK))
    values: torch.Tensor = codes.float().view(-1, blocks, BLOCK).mul_(scales[..., None]).flatten(1)[:, :width].contiguous()
    _refuse_non_finite(values, "int8")
    return values


def _refuse_non_finite(values: torch.Tensor, codec: str) -> None:
    if (
        values.is_floating_point() and values.numel() and not all(map(math.isfinite, values.aminmax()))
    ):  # one pass over the values
        raise TensorFormatError(
            f"NaN or infinity in a {values.dtype} {list(values.shape)} tensor (codec {codec}), expected finite values only"
        )


def _bytes_of(values: torch.Tensor) -> memoryview | bytes:
    """For a token most of the time is torch's code being fetched: no operation that has nothing to do (docs/log.md)."""
    if values.numel() == 0:
        return b""
    if values.device.type != "cpu" or not values.is_contiguous():
        values = values.cpu().contiguous()
    if values.dtype is torch.bfloat16:  # unknown to numpy
        values = values.view(torch.int16)
    array: Any = values.numpy()
    return memoryview(array).cast("B")
