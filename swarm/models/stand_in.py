"""A model whose block list holds one module of ours.

The model's own forward still embeds, normalises and projects around it. Clients put remote blocks there; nodes that host embedding and
head put a module there that takes hidden states out or puts some in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

NO_ATTENTION = "murmuration_remote"
"""The attention that such a model runs with: none. Its masks are shapes without memory, since they are not read."""


_noted: ContextVar[list[Callable[..., Tensor]] | None] = ContextVar("murmuration_noted_masks", default=None)


@contextmanager
def masks_noted() -> Iterator[list[Callable[..., Tensor]]]:
    """Inside, each mask that a forward asks for is noted: its function (batch, head, query, key) -> may attend, of index tensors."""
    masks: list[Callable[..., Tensor]] = []
    token = _noted.set(masks)
    try:
        yield masks
    finally:
        _noted.reset(token)


def _no_attention(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError("a block ran in a model whose layer list was not replaced")


def _no_mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor:
    """One value under the shape of a mask. (Without a mask function transformers gives None, on which mpt's forward fails.)"""
    noted = _noted.get()
    if noted is not None:
        noted.append(kwargs["mask_function"])
    return torch.zeros((), dtype=torch.bool, device=kwargs.get("device")).expand(batch_size, 1, q_length, kv_length)


AttentionInterface.register(NO_ATTENTION, _no_attention)
AttentionMaskInterface.register(NO_ATTENTION, _no_mask)


class StandIn(nn.Module):
    """Where the blocks were. A forward may read attributes of a block: those are the template's."""

    def __init__(self, template: nn.Module | None) -> None:
        super().__init__()
        self.__dict__["template"] = template  # beside nn.Module: it is no submodule, its tensors are on the meta device

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            template = self.__dict__.get("template")
            if template is None or name.startswith("__"):
                raise
            return getattr(template, name)


class Tap(StandIn):
    """Stands in for the blocks: keeps the hidden states that would enter the first, and returns those that left the last."""

    def __init__(self, template: Any, returns_tuple: bool) -> None:
        super().__init__(template)
        self._returns_tuple = returns_tuple
        self.taken: Tensor | None = None
        self.given: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.taken = hidden_states
        hidden = hidden_states if self.given is None else self.given
        return (hidden, None) if self._returns_tuple else hidden


def replace_blocks(model: nn.Module, stand_in: nn.Module, owner: nn.Module, attribute: str) -> None:
    """Put `stand_in` where the layer list was; nothing is trained here, and no mask is built."""
    setattr(owner, attribute, nn.ModuleList([stand_in]))
    configs: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    for config in configs:
        config._attn_implementation_internal = NO_ATTENTION
        config.output_hidden_states = config.output_attentions = False  # a caller that wants some says so in the call
    model.requires_grad_(False)
    model.eval()
