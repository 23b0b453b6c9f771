"""Consecutive blocks of a model as one module on hidden states.

The model's own `forward` runs (it makes masks, rotary tables, alibi), on zeros. A hook before the first block puts the real
hidden state in, a hook behind the last one takes the result out; what runs before and after (embedding scale, position table,
final norm) works on numbers that are not used. The hooks are registered once; the hidden state travels in a ContextVar.

Shapes: B sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from protocols.errors import ModelNotSupportedError
from swarm.models.skeleton import Location


class _Pass:
    """One run through a span: what goes in, and what came out."""

    __slots__ = ("hidden", "output")

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden
        self.output: Tensor | None = None


_PASS: ContextVar[_Pass | None] = ContextVar("swarm_span_pass", default=None)


class SpanModule(nn.Module):
    """Blocks [start, stop) of a model. `config` is the shortened config: it describes a model of just these blocks."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """`model`: a pruned, shortened model (`skeleton.py`) that holds at least one block."""
        super().__init__()
        location: Location = model.swarm_location
        self.model = model
        self.dtype = dtype
        self.decoder: Any = location.decoder
        self.layers = location.blocks
        self.config: Any = self.decoder.config.get_text_config(decoder=True)
        self.hidden_size: int = self.config.hidden_size
        self._embed_width = location.embed_width
        parameters = inspect.signature(type(self.decoder).forward).parameters
        self.takes_positions = "position_ids" in parameters
        self._cache_key = "past_key_values" if "past_key_values" in parameters else "cache_params"
        if any("input_ids" in inspect.signature(type(layer).forward).parameters for layer in self.layers):
            raise ModelNotSupportedError(f"blocks of {self.config.model_type!r} read the token ids, which hosts never see")
        configs = {
            id(config): config for module in self.decoder.modules() if (config := getattr(module, "config", None)) is not None
        }
        self._configs = [config for config in configs.values() if hasattr(config, "_attn_implementation_internal")]
        self.layers[0].register_forward_pre_hook(_inject, with_kwargs=True)
        self.layers[-1].register_forward_hook(_tap)

    @property
    def device(self) -> torch.device:
        return next(self.layers.parameters()).device

    def forward(
        self, hidden: Tensor, cache: Any = None, position_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """hidden [B, T, H] -> [B, T, H]. `cache`: a transformers Cache for exactly these blocks, or None to keep nothing."""
        run = _Pass(hidden)
        options: dict[str, Any] = {"use_cache": cache is not None, self._cache_key: cache}
        if position_ids is not None and self.takes_positions:
            options["position_ids"] = position_ids
        if attention_mask is not None:
            options["attention_mask"] = attention_mask
        token = _PASS.set(run)
        try:
            self.decoder(inputs_embeds=self._outer_input(hidden), **options)
        finally:
            _PASS.reset(token)
        assert run.output is not None, "the decoder did not run its last block"
        return run.output

    def _outer_input(self, hidden: Tensor) -> Tensor:
        """What the model's own forward works on before the first block; `check_chain` replaces it."""
        return hidden.new_zeros(*hidden.shape[:2], self._embed_width)

    @contextmanager
    def attention_by(self, name: str) -> Iterator[None]:
        """Inside, every attention module here calls the function registered as `name`; afterwards its own again.

        The private field is written, since the public setter refuses names without a mask function.
        """
        before = [config._attn_implementation_internal for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = name
        try:
            yield
        finally:
            for config, own in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = own


def _inject(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    run = _PASS.get()
    if run is None:
        return None
    if args:
        return (run.hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": run.hidden}


def _tap(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
    run = _PASS.get()
    if run is not None:
        run.output = output[0] if isinstance(output, tuple | list) else output
