"""One forward of a model with remote blocks.

Its own `forward`, which embeds, normalises and projects, with our checks before it and one step through the swarm inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from protocols.errors import BadRequestError, ModelNotSupportedError
from protocols.ids import Span
from swarm import trace
from swarm.client import forward_options
from swarm.client.blocks import StepPlan, planned
from swarm.client.cache import RemoteCache
from swarm.client.hidden_states import LastHiddenState, noted
from swarm.client.holdings import Holdings
from swarm.client.loop import check_process
from swarm.client.planning import Family, plan
from swarm.client.remote_span import RemoteSpan
from swarm.models.packing import keeps_packed_apart

NO_GRAPH = (
    "its blocks run at nodes of a swarm, which no graph of this machine holds; call it as it is, or compile without fullgraph"
)
"""What `torch.compile` is told of a forward: it runs as it is, between the graphs of the code around it."""

guessing: ContextVar[bool] = ContextVar("murmuration_guessing", default=False)
"""Is this forward one of assisted decoding, or of its assistant?"""

opened: ContextVar[list[RemoteCache] | None] = ContextVar("murmuration_opened_caches", default=None)
"""Caches that the `generate` around this has made; None = no `generate` is around it."""


class RemoteForward(Holdings):
    """Comes before the model's own class, by way of `RemoteGeneration`."""

    _hops_skip_padding = False
    """As of `Family`; False: the model's own forward, here, uses the positions."""

    def _remote_forward(self, own: Callable[..., Any], names: Sequence[str], kwargs: dict[str, Any]) -> Any:
        """Run the model's own forward with remote blocks. Whatever is wrong with the arguments is said before a byte is sent.

        names: the parameters of `own`.
        """
        trace.mark("called", trace.NOBODY, -1)
        check_process(self.remote.process)  # before anything is computed: in a fork, torch may hang as well
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise BadRequestError(f"a model in a swarm cannot be exported or traced: {NO_GRAPH}")
        may_differentiate = not kwargs.get("use_cache") and self._may_differentiate(kwargs.get("inputs_embeds"))
        want = forward_options.settled(names, kwargs, self.config, is_generating=opened.get() is not None)  # type: ignore[attr-defined]
        key = self.remote.cache_key
        cache = self._checked_cache(kwargs.pop(key or "past_key_values", None))
        if key and cache is None and want.use_cache and not may_differentiate:
            cache = self.new_cache()
        step = plan(kwargs, cache, self._family(), wants_hidden=want.hidden_states)
        if key:
            kwargs |= {key: cache, "use_cache": cache is not None}
        trace.mark("planned", trace.NOBODY, -1)
        result = self._answered(own, step, kwargs, want.hidden_states)
        return result.to_tuple() if want.is_tuple else result

    def _answered(self, own: Callable[..., Any], step: StepPlan, kwargs: dict[str, Any], wants_hidden: bool) -> Any:
        """The model's own forward: it embeds, sends `step` through the blocks, normalises and projects."""
        with planned(step), noted() as outputs:
            result = own(self, **kwargs, return_dict=True)
        if wants_hidden:
            if not outputs:
                raise ModelNotSupportedError(f"{type(self).__name__} does not show its last hidden state; ask for logits only")
            # transformers cuts the states of a run of guesses into those of its tokens, and takes each state in the tuple for a tensor
            last = outputs[-1]
            result.hidden_states = (last,) if guessing.get() else LastHiddenState(last, self.remote.num_blocks)
        return result

    def _may_differentiate(self, embeds: object) -> bool:
        """May a gradient be asked of this forward? Then it makes no cache, unless the caller asks for one."""
        if not torch.is_grad_enabled():
            return False
        return (isinstance(embeds, Tensor) and embeds.requires_grad) or any(one.requires_grad for one in self.parameters())  # type: ignore[attr-defined]

    def _checked_cache(self, cache: object) -> RemoteCache | None:
        if cache is not None and self.remote.cache_key is None:
            raise BadRequestError(f"{type(self).__name__} has no cache: every step brings all tokens; pass no past_key_values")
        if cache is None:
            return None
        if isinstance(cache, RemoteCache):
            cache.check_model(self.remote.backend.model)
            return cache
        raise BadRequestError(
            f"{self.remote.cache_key} is a {type(cache).__name__}, but keys and values stay at the hops; "
            "pass what an earlier call returned, model.new_cache(), or nothing"
        )

    def _family(self) -> Family:
        return Family(
            config=self.config,  # type: ignore[attr-defined]
            vocab_size=self.remote.vocab_size,
            max_positions=self.remote.max_positions,
            cache_key=self.remote.cache_key,
            is_stateful=bool(self._is_stateful),  # type: ignore[attr-defined]
            hops_skip_padding=self._hops_skip_padding,
            keeps_packed_apart=lambda: self._keeps_packed_apart,
        )

    @cached_property
    def _keeps_packed_apart(self) -> bool | None:
        return keeps_packed_apart(self.config)  # type: ignore[attr-defined]

    @property
    def blocks(self) -> RemoteSpan:
        """The model's blocks, for hidden states of your own: `model.blocks[a:b](hidden)`, or `.session()` (`remote_span.py`)."""
        width = self.config.get_text_config(decoder=True).hidden_size  # type: ignore[attr-defined]
        return RemoteSpan(self.remote.backend, Span(0, self.remote.num_blocks), width, self.remote.max_positions)

    def new_cache(self) -> RemoteCache:
        """An empty `past_key_values`: a session of its own, which ends when the last reference to it goes."""
        return RemoteCache(self.remote.backend.open, self.remote.backend.model)
