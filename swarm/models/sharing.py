"""Copies of loaded modules over the same tensors, except exchanged ones.

Modules carry state of their own: configs, cache indices, hooks, buffers that a forward replaces or writes to (`inv_freq` of a rope). A copy
has its own of all that, so two users of the same numbers cannot disturb each other. What a checkpoint stores is shared, and no forward
writes to it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from protocols.errors import BadRequestError, shown

T = TypeVar("T")


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name: what a checkpoint stores. A tied parameter has its first name only."""
    kept = module.state_dict(keep_vars=True)
    buffers = {name: tensor for name, tensor in module.named_buffers() if name in kept}
    return {**dict(module.named_parameters()), **buffers}


def numbered_tensors(blocks: Iterable[nn.Module], start: int) -> dict[str, Tensor]:
    """`named_tensors` of blocks as NUMBER.NAME, the first of which has number `start` in the whole model."""
    numbered = enumerate(blocks, start)
    return {f"{number}.{name}": tensor for number, block in numbered for name, tensor in named_tensors(block).items()}


def twin(holder: T, model: nn.Module, exchanged: Mapping[int, Tensor] | None = None) -> T:
    """A copy of `holder`, which holds `model`, over the same `named_tensors`; `exchanged`: others, by the id of the old one."""
    shared = {id(tensor): tensor for tensor in named_tensors(model).values()}
    return copy.deepcopy(holder, {**shared, **(exchanged or {})})


def exchange(holder: T, model: nn.Module, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> T:
    """A copy of `holder`, which holds `model`, with copies of `others`, which fit, in place of its `own` tensors of those names."""
    return twin(holder, model, {id(own[name]): like(own[name], other) for name, other in others.items()})


def check_fit(own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """BadRequestError unless each of the others has the shape and dtype of the own tensor of that name."""
    for name, other in others.items():
        mine = own.get(name)
        if mine is None:
            raise BadRequestError(f"no tensor is called {shown(name)} here; there are {len(own)}, first {next(iter(own))!r}")
        if (other.shape, other.dtype) != (mine.shape, mine.dtype):
            raise BadRequestError(
                f"{name} is {mine.dtype} {list(mine.shape)} here, got {other.dtype} {list(other.shape)}: send it in that form"
            )


def like(own: Tensor, other: Tensor) -> Tensor:
    """The numbers of `other`, in memory and on the device of their own, as a tensor of `own`'s kind."""
    with torch.inference_mode(False):
        made = torch.empty_like(own, requires_grad=False)
        copy_into(made, other)
        return nn.Parameter(made, requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else made


def copy_into(own: Tensor, other: Tensor) -> None:
    """Write the numbers of `other` into `own`, from any device; no graph of gradients notes it."""
    with torch.inference_mode(False), torch.no_grad():
        own.copy_(other)
