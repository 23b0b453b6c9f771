"""Tells whether transformers keeps sequences apart that are packed together.

Several sequences share one batch row; each begins where `position_ids` start anew (`masking_utils.find_packed_sequence_indices`). Only
families that hand their positions to the mask keep them apart. So a forward is run, in a model of the family without blocks and with a
vocabulary of a few tokens, and the mask that it asks for is examined.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch

from swarm.models.default_dtype import building
from swarm.models.skeleton import Location, causal_config, model_class, pruned, shorten
from swarm.models.stand_in import NO_ATTENTION, masks_noted

_NUM_TOKENS = 8
_POSITIONS = torch.tensor([[0, 1, 0, 1]])


def keeps_packed_apart(config: Any) -> bool | None:
    """True or False, as the family does; None if its masks do not agree, or it does not run like this."""
    try:
        masks = _masks(config)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
    ):  # what transformers' code raises for sizes it did not expect
        return None
    answers = {_is_cut(mask) for mask in masks}
    return None if len(answers) > 1 else answers == {True}


def _masks(config: Any) -> list[Callable[..., torch.Tensor]]:
    """The functions (batch, head, query, key) -> may attend, of every mask that a forward of two packed sequences asks for."""
    model = _small(config)
    location: Location = model.swarm_location
    if "position_ids" not in inspect.signature(location.decoder.forward).parameters:
        return []
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation_internal = NO_ATTENTION
    with masks_noted() as masks, torch.no_grad():
        location.decoder(torch.zeros_like(_POSITIONS), position_ids=_POSITIONS, use_cache=False)
    return masks


def _small(config: Any) -> Any:
    """A model of the family on the CPU, without blocks; its random weights are small."""
    own = copy.deepcopy(causal_config(config))
    own._attn_implementation_internal = None  # that of a model without blocks suits no constructor
    text = own.get_text_config(decoder=True)
    text.vocab_size = _NUM_TOKENS
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    with building():
        model = pruned(model_class(own), 0, 0)._from_config(own, dtype=torch.float32)
    shorten(model, 0, 0)
    return model.eval()


def _is_cut(mask: Callable[..., torch.Tensor]) -> bool:
    """Token 1 sees token 0, as causal attention does, but token 2, which starts the second sequence, does not see token 1."""
    zero, one, two = torch.arange(3)
    return bool(mask(zero, zero, one, zero)) and not bool(mask(zero, zero, two, one))
