"""Torch tensors to wire tensors and back, by a codec.

Each codec states its error. The only file of this package that knows torch.

    codec      bytes a value   error of one value x that was packed (u = |x - unpacked|)
    none       its dtype's     0: the same bits, NaN and infinities included (refused with `finite=True`)
    float16    2               u <= |x| / 2**11, or 2**-25 where |x| < 2**-14; |x| > 65504 is refused
    bfloat16   2               u <= |x| / 2**8, or 2**-134 where |x| < 2**-126; what would round to infinity is refused

`float16` and `bfloat16` take float32, float16 or bfloat16 and give the same dtype back; they refuse NaN and infinities at both
ends, since a peer that averages or caches one never gets rid of it. Packing what is already in the codec's dtype loses nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from protocols.errors import TensorFormatError
from protocols.tensors import CODECS, ITEM_BYTES, WireTensor

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


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
    return WireTensor(name, tuple(values.shape), codec, _bytes_of(_narrowed(values, codec)))


def unpack(
    wire: WireTensor, device: str | torch.device = "cpu", *, finite: bool = False, shape: tuple[int, ...] | None = None
) -> torch.Tensor:
    """The tensor on `device`, free to be changed: it shares memory with a writable buffer only, never with received bytes.

    shape: another one of as many values, where that spares the caller an operation.

    TensorFormatError if a lossy codec, or `finite=True`, forbids the NaN or infinity that was sent.
    """
    lossy, dtype, shape = wire.codec != "none", _DTYPES[wire.dtype], wire.shape if shape is None else shape
    stored = _DTYPES[wire.codec] if lossy else dtype
    if wire.num_bytes == 0:
        return torch.empty(shape, dtype=dtype, device=device)
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
