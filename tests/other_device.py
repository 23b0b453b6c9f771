"""A second device for machines that have none.

Its tensors may not meet those of the CPU, as those of a card may not. Inside `present()`, what is asked for on `OTHER` computes as ever,
and an operation that mixes both kinds fails as it would on a card.
What only a real card shows stays unseen: its kernels, its rounding, and that its calls return before their work is done.

The name is torch's "meta", the one device besides the CPU that every build of torch lets tensors be made on and moved to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

OTHER = torch.device("meta")
aten = torch.ops.aten
_CROSSING = {aten._to_copy.default, aten.copy_.default}
"""Operations whose arguments may lie on both."""
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
"""Indices may lie on the CPU, wherever the tensor is."""


class _There(Tensor):
    """A tensor of the other device; `here` holds its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        made: _There = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=OTHER
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Present(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromNumbers(TorchFunctionMode):
    """`torch.tensor` fills no memory of "meta", so it is filled on the CPU and moved."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            return func(*args, **given | {"device": "cpu"}).to(given["device"])
        return func(*args, **given)


@contextmanager
def present() -> Iterator[None]:
    """The other device is there, for this thread. Nothing is differentiated: these tensors have no versions."""
    with torch.inference_mode(), _Present(), _FromNumbers():
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with _Present():  # in inference mode, operations that are made of others arrive whole
        parts = func.decompose(*args, **kwargs)
    if parts is not NotImplemented:
        return parts
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, _There)]
    _check(func, args, there, tensors)
    wanted = kwargs.get("device")
    is_there = bool(there) if wanted is None else torch.device(wanted) == OTHER
    if func is aten.copy_.default:
        is_there = isinstance(args[0], _There)
    here = tree_map(lambda value: value.here if isinstance(value, _There) else value, (args, kwargs))
    given = dict(here[1]) if wanted is None else here[1] | {"device": torch.device("cpu")}
    result = _computed(func, here[0], given)
    known = {id(value.here): value for value in there}  # an operation in place gives its argument back
    return tree_map(lambda value: _back(value, known, is_there), result)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is aten.histc.default and not args[0].is_floating_point():  # cards count integers: transformers' experts ask them to
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _check(func: Any, args: Any, there: list[Tensor], tensors: list[Tensor]) -> None:
    """RuntimeError if the operation mixes devices. A number (a tensor without axes) of the CPU may meet any tensor."""
    if not there or func in _CROSSING:
        return
    if func in _INDEXING and isinstance(args[0], _There):
        tensors = [args[0], *(value for value in args[2:] if isinstance(value, Tensor))]
    if any(not isinstance(value, _There) and value.dim() for value in tensors):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found some on {OTHER} and some on cpu")


def _back(value: Any, known: dict[int, _There], is_there: bool) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, _There):
        return value
    if id(value) in known:
        return known[id(value)]
    return _There(value) if is_there else value
