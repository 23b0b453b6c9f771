"""Tells whether a family's blocks are a chain.

The loaded blocks themselves are examined, so that no list of names is needed.

A span can be hosted apart only if a block's output depends on the hidden state it is handed, and on positions: not on
the embeddings, not on the token ids, not on a side output of an earlier block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from protocols.errors import ModelNotSupportedError
from swarm.models.skeleton import Location
from swarm.models.span import SpanModule
from swarm.models.stand_in import StandIn

_TOKENS = 3


@torch.inference_mode()
def check_chain(span: SpanModule) -> None:
    """Run a few tokens without a cache; ModelNotSupportedError says what a block reads besides the block before it."""
    kind = span.config.model_type
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, _TOKENS, span.hidden_size, generator=generator).to(span.device, span.dtype)
    watch = _SideWatch(span.layers)
    try:
        output = span(hidden)
    finally:
        watch.remove()
    if watch.passed_on:
        raise ModelNotSupportedError(f"blocks of {kind!r} hand more than the hidden state to each other ({watch.passed_on})")
    if output.shape != hidden.shape:
        raise ModelNotSupportedError(
            f"blocks of {kind!r} turn {list(hidden.shape)} into {list(output.shape)}; a hop hands on one hidden state a token"
        )
    noise = (span(hidden) - output).abs().max()  # 0, but for kernels that add up in any order
    rounding = torch.finfo(output.dtype).eps * output.abs().max()  # such kernels may agree twice by chance, and a third time not
    if (_run_on_other_surroundings(span, hidden) - output).abs().max() > 10 * noise + rounding:
        raise ModelNotSupportedError(
            f"blocks of {kind!r} read the embeddings, or a table that is no block's, besides the block before"
        )


def _run_on_other_surroundings(span: SpanModule, hidden: Tensor) -> Tensor:
    """The same run while everything around the blocks is something else: what comes in, and every weight that is no block's.

    Those weights are not the checkpoint's anyway (a span does not load them), so blocks that read one would be wrong.
    """
    mine = {id(parameter) for parameter in span.layers.parameters()}
    others = [parameter for parameter in span.decoder.parameters() if id(parameter) not in mine]
    kept = [parameter.clone() for parameter in others]
    zeros = span._outer_input
    span.__dict__["_outer_input"] = lambda hidden: zeros(hidden) + 1
    try:
        for parameter in others:
            parameter.add_(1)
        output: Tensor = span(hidden)
        return output
    finally:
        del span.__dict__["_outer_input"]
        for parameter, value in zip(others, kept, strict=True):
            parameter.copy_(value)


class _SideWatch:
    """Notes whether a tensor that one block returned, other than its hidden state, is handed to a later one."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.passed_on = ""
        self._returned: dict[int, Tensor] = {}  # keeps the tensors alive, so that ids stay unique
        self._hooks: list[Any] = []
        for layer in layers:
            self._hooks.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._hooks.append(layer.register_forward_hook(self._after))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = [*(f"argument {index}" for index in range(1, len(args))), *kwargs]
        for name, value in zip(names, [*args[1:], *kwargs.values()], strict=True):
            if name != "hidden_states" and any(id(tensor) in self._returned for tensor in _tensors(value)):
                self.passed_on = name

    def _after(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple | list):
            self._returned |= {id(tensor): tensor for tensor in _tensors(output[1:])}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return []


class _PassOn(StandIn):
    """A block that hands its input on, as a tuple or alone."""

    def __init__(self, template: nn.Module, as_tuple: bool) -> None:
        super().__init__(template)
        self._as_tuple = as_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, None) if self._as_tuple else hidden


@torch.inference_mode()
def returns_tuple(model: Any, location: Location, template: nn.Module) -> bool:
    """Whether this family's decoder expects a tuple from a block. Found by handing it one: a decoder that expects the hidden
    state alone fails on a tuple, while one that indexes would silently take one sequence of a bare tensor; so the tuple goes first."""
    weight = next(model.parameters())
    width = location.embed_width
    blank = torch.zeros(1, _TOKENS, width, device=weight.device, dtype=weight.dtype)
    empty = location.blocks
    for as_tuple in (True, False):
        setattr(location.owner, location.attribute, nn.ModuleList([_PassOn(template, as_tuple)]))
        try:
            last = location.decoder(inputs_embeds=blank, use_cache=False)[0]
            if isinstance(last, Tensor):  # a decoder without a final norm hands even a tuple through
                return as_tuple
        except (TypeError, AttributeError, RuntimeError, ValueError, IndexError):
            if not as_tuple:
                raise
        finally:
            setattr(location.owner, location.attribute, empty)
    raise ModelNotSupportedError(f"what blocks of {model.config.model_type!r} return could not be found out")
