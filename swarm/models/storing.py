"""Stores loaded units in Hugging Face form: names, splitting, files.

The counterpart of `loading.py`, and transformers' own as well: a pruned model on the meta device is given the unit's tensors, and then
does what `save_pretrained` does before it writes (tied tensors once, fused experts one by one, old names). Only the number of the block
is put back by us. So a unit is stored without the rest of the model.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from protocols.errors import BadRequestError, CheckpointError
from protocols.units import Blocks, Ends
from protocols.words import counted, described
from swarm import files
from swarm.checkpoints.numbered import first_number
from swarm.models.sharing import check_fit, named_tensors, numbered_tensors, twin
from swarm.models.skeleton import blocks_prefix, meta_model


def unit_tensors(config: Any, unit: Blocks | Ends, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What a unit holds if it is loaded in `dtype`, on the meta device: named as `SpanParts.tensors()`, `EndsModel.tensors()`."""
    return _named(_pruned(config, unit, dtype), unit)


def stored_tensors(config: Any, unit: Blocks | Ends, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The unit's tensors as `save_pretrained` of the whole model stores them: name in the checkpoint -> values, contiguous.

    config: of the whole model. unit: blocks of any length, or `Ends`. tensors: all of `unit_tensors`, of these shapes; their dtypes
    stay. BadRequestError if one is missing, unknown or has another shape. No tensor is changed, and those that are stored as they
    are share memory with what was given.
    """
    model = _pruned(config, unit, torch.float32)
    own = _named(model, unit)
    if own.keys() != tensors.keys():
        odd = min(own.keys() ^ tensors.keys())
        raise BadRequestError(f"unit {unit} holds {counted(len(own), 'tensor')}, got {len(tensors)}; {odd!r} is on one side only")
    for name, tensor in tensors.items():
        check_fit({name: own[name].to(tensor.dtype)}, {name: tensor})
    with torch.no_grad():
        filled = twin(model, model, {id(own[name]): _as(own[name], tensor) for name, tensor in tensors.items()})
    prefix = blocks_prefix(filled, filled.swarm_location.blocks) if isinstance(unit, Blocks) else ""
    state = {name: tensor for name, tensor in filled.state_dict().items() if name.startswith(prefix)}
    reverted = revert_weight_conversion(filled, remove_tied_weights_from_state_dict(state, filled))
    start = unit.start if isinstance(unit, Blocks) else None
    return {_numbered(name, start): tensor.contiguous() for name, tensor in reverted.items()}


def _as(own: Tensor, tensor: Tensor) -> Tensor:
    return nn.Parameter(tensor, requires_grad=False) if isinstance(own, nn.Parameter) else tensor


def _pruned(config: Any, unit: Blocks | Ends, dtype: torch.dtype) -> Any:
    start, stop = (unit.start, unit.stop) if isinstance(unit, Blocks) else (0, 0)
    return meta_model(config, start, stop, dtype)


def _named(model: Any, unit: Blocks | Ends) -> dict[str, Tensor]:
    if isinstance(unit, Ends):
        return named_tensors(model)
    return numbered_tensors(model.swarm_location.blocks, unit.start)


def _numbered(name: str, start: int | None) -> str:
    """The name with the number that its block has in the whole model."""
    found = first_number(name) if start is not None else None
    if found is None or start is None:
        return name
    prefix, number = found
    return f"{prefix}{int(number) + start}{name[len(prefix) + len(number) :]}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file. OSError if it cannot be written: ENOSPC if the disk is full."""
    try:
        safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:  # it says the system's reason in words only
        raise OSError(errno.ENOSPC if files.is_full(error) else errno.EIO, described(error), str(path)) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one safetensors file; CheckpointError if it is not there, or damaged."""
    try:
        with safe_open(str(path), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {described(error)}") from error
