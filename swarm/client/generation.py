"""How a Hugging Face model runs with remote blocks.

Its own `forward` and `generate`, with ours around them.

`RemoteGeneration` comes before the model's class in a class made for it (`remote_class`). Its `forward` checks what came,
plans the step (`blocks.py`) and calls the model's own; its `generate` sees to it that sessions end when they should.
"""

from __future__ import annotations

import copy
import inspect
import os
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode

from protocols.errors import BadRequestError, ModelNotSupportedError
from protocols.ids import Span
from protocols.inference import WANT_ALL
from swarm.client import checks, contract, forward_options, packing, padding, windows
from swarm.client.backend import Backend
from swarm.client.blocks import RemoteBlocks, StepPlan, planned
from swarm.client.cache import RemoteCache
from swarm.client.hidden_states import LastHiddenState, noted, remember_output
from swarm.client.holdings import Holdings
from swarm.client.loop import check_process
from swarm.client.remote_span import RemoteSpan
from swarm.inference import trace
from swarm.models.checkpoint import Checkpoint
from swarm.models.packing import keeps_packed_apart
from swarm.models.stand_in import replace_blocks

NO_GRAPH = (
    "its blocks run at nodes of a swarm, which no graph of this machine holds; call it as it is, or compile without fullgraph"
)
"""What `torch.compile` is told of a forward: it runs as it is, between the graphs of the code around it."""

_guessing: ContextVar[bool] = ContextVar("murmuration_guessing", default=False)

_opened: ContextVar[list[RemoteCache] | None] = ContextVar("murmuration_opened_caches", default=None)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What a model knows about its blocks and limits."""

    backend: Backend
    num_blocks: int
    vocab_size: int
    max_positions: int | None
    cache_key: str | None
    """What this family calls its cache argument: `past_key_values`, `cache_params` for the mamba-like, or None if it has none."""
    path: Path
    """The checkpoint's directory, for its tokenizer."""
    process: int = field(default_factory=os.getpid)
    """Where the model may be used: not in a fork of it."""


class RemoteGeneration(Holdings):
    """Comes before the model's own class; `remote` is set by `become_remote`."""

    remote: Remote

    # --- one forward

    def remote_forward(self, own: Callable[..., Any], names: Sequence[str], kwargs: dict[str, Any]) -> Any:
        """Run the model's own forward with remote blocks. Whatever is wrong with the arguments is said before a byte is sent.

        names: the parameters of `own`.
        """
        trace.mark("called", trace.NOBODY, -1)
        check_process(self.remote.process)  # before anything is computed: in a fork, torch may hang as well
        if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise BadRequestError(f"a model in a swarm cannot be exported or traced: {NO_GRAPH}")
        want = forward_options.settled(names, kwargs, self.config, is_generating=_opened.get() is not None)  # type: ignore[attr-defined]
        key = self.remote.cache_key
        cache = self._checked_cache(kwargs.pop(key or "past_key_values", None))
        if key and cache is None and want.use_cache:
            cache = self.new_cache()
        plan = self._plan(kwargs, cache, want.hidden_states)
        if key:
            kwargs |= {key: cache, "use_cache": cache is not None}
        trace.mark("planned", trace.NOBODY, -1)
        result = self.answered(own, plan, kwargs, want.hidden_states)
        return result.to_tuple() if want.is_tuple else result

    def answered(self, own: Callable[..., Any], plan: StepPlan, kwargs: dict[str, Any], wants_hidden: bool) -> Any:
        """The model's own forward: it embeds, sends its blocks' step by `plan`, normalises and projects."""
        with planned(plan), noted() as outputs:
            result = own(self, **kwargs, return_dict=True)
        if wants_hidden:
            if not outputs:
                raise ModelNotSupportedError(f"{type(self).__name__} does not show its last hidden state; ask for logits only")
            # transformers cuts the states of a run of guesses into those of its tokens, and takes each state in the tuple for a tensor
            last = outputs[-1]
            result.hidden_states = (last,) if _guessing.get() else LastHiddenState(last, self.remote.num_blocks)
        return result

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

    def _plan(self, kwargs: dict[str, Any], cache: RemoteCache | None, wants_hidden: bool) -> StepPlan:
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        size, columns = self._check_inputs(ids, embeds)
        past, lengths = (0, None) if cache is None else (cache.columns, cache.rows)
        checks.check_rows(size, lengths)
        mask = kwargs.get("attention_mask")
        is_dropped = mask is None and self.remote.cache_key == "cache_params"  # these pass no mask after the prompt: all is real
        real = None if is_dropped else checks.check_mask(mask, size, columns, past, lengths)
        positions = checks.wide_positions(kwargs.get("position_ids"), size, columns)
        packed = None if mask is not None or positions is None else self._packed(positions, cache)
        is_padded = real is not None or any(length != past for length in lengths or ())
        hole = mask if mask is not None and is_padded and windows.has_hole(mask) else None
        if hole is not None:
            windows.warn_of_hole(self.config, hole)  # type: ignore[attr-defined]
        if mask is not None and is_padded and positions is None:
            self._check_counted(mask)
        counts = packed or ([columns] * size if real is None else real.sum(1).tolist())
        before = lengths or [0] * len(counts)
        checks.check_length(max(old + new for old, new in zip(before, counts, strict=True)), self.remote.max_positions)
        forward_options.check_labels(kwargs, real, size, columns, self.remote.vocab_size)
        keep = kwargs.get("logits_to_keep")
        forward_options.check_keep(keep, columns)
        wants_all = wants_hidden or packed is not None or kwargs.get("labels") is not None
        want = keep if isinstance(keep, int) and keep > 0 and not wants_all else WANT_ALL
        if want != WANT_ALL and real is not None:
            checks.check_last_column(real, before, counts)
        if hole is not None and positions is None:
            positions = windows.column_positions(hole, columns)
        else:
            positions = checks.custom_positions(positions, real, counts, before)
        sequences = None if packed is None else tuple(packed)
        return StepPlan(cache=cache, real_Bq=real, positions_T=positions, want=want, sequences=sequences)

    def _check_counted(self, mask: Tensor) -> None:
        """Positions were not given: the model's own forward counts them if it has a table of them."""

    def _packed(self, positions: Tensor, cache: RemoteCache | None) -> list[int] | None:
        """Tokens of each sequence that is packed in the batch rows, if transformers would keep them apart."""
        sequences = packing.lengths(positions)
        if sequences is None or self._keeps_packed_apart is False:
            return None
        if cache is not None:
            packing.warn_together()
            return None
        packing.check(self.config, bool(self._is_stateful), self._keeps_packed_apart, positions, sequences)  # type: ignore[attr-defined]
        return sequences

    @cached_property
    def _keeps_packed_apart(self) -> bool | None:
        return keeps_packed_apart(self.config)  # type: ignore[attr-defined]

    def _check_inputs(self, ids: object, embeds: object) -> tuple[int, int]:
        """(batch size, columns) of the new tokens."""
        if (ids is None) == (embeds is None):
            raise BadRequestError("give either input_ids or inputs_embeds, and not both")
        if isinstance(embeds, Tensor):
            checks.check_embeds(embeds)
            return embeds.shape[0], embeds.shape[1]
        checks.check_ids(ids, self.remote.vocab_size)
        assert isinstance(ids, Tensor)
        return ids.shape[0], ids.shape[1]

    @property
    def blocks(self) -> RemoteSpan:
        """The model's blocks, for hidden states of your own: `model.blocks[a:b](hidden)`, or `.session()` (`remote_span.py`)."""
        width = self.config.get_text_config(decoder=True).hidden_size  # type: ignore[attr-defined]
        return RemoteSpan(self.remote.backend, Span(0, self.remote.num_blocks), width, self.remote.max_positions)

    # --- generate

    def new_cache(self) -> RemoteCache:
        """An empty `past_key_values`: a session of its own, which ends when the last reference to it goes."""
        return RemoteCache(self.remote.backend.open, self.remote.backend.model)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> None:
        """transformers asks here for a cache, when it knows how long everything may become."""
        self._check_room(generation_config, model_kwargs.get("attention_mask"), max_cache_length)
        key = self.remote.cache_key
        cache = self._checked_cache(model_kwargs.get(key or "past_key_values"))
        is_guessing = generation_mode == GenerationMode.ASSISTED_GENERATION
        contract.check_use_cache(generation_config, cache is not None, is_guessing)
        contract.say_what_is_ignored(generation_config)
        if cache is not None:
            cache._is_user_defined = True
        elif key and generation_config.use_cache is not False:
            cache = model_kwargs[key] = self.new_cache()
            opened = _opened.get()
            if opened is not None:
                opened.append(cache)

    def _prepare_generation_config(self, generation_config: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """transformers merges here what the call and the checkpoint say."""
        settings, arguments = super()._prepare_generation_config(generation_config, **kwargs)  # type: ignore[misc]
        contract.without_unread_outputs(settings, arguments)
        return settings, arguments

    def _validate_generation_mode(self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: Any) -> None:
        """transformers asks here whether this model can decode as the settings say."""
        if generation_mode == GenerationMode.ASSISTED_GENERATION:
            checks.check_rewindable(self.config, bool(self._is_stateful))  # type: ignore[attr-defined]
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)  # type: ignore[misc]

    def _get_stopping_criteria(self, generation_config: Any, stopping_criteria: Any, tokenizer: Any = None) -> Any:
        """As transformers', which asks the caller for a tokenizer if there are stop strings; the model's own does here."""
        if tokenizer is None and generation_config.stop_strings is not None:
            tokenizer = self.tokenizer_if_any()  # type: ignore[attr-defined]
        return super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer=tokenizer)  # type: ignore[misc]

    def only_new(self, input_ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `prepare_inputs_for_generation` that feed only what the cache does not hold.

        transformers 5.23 says so itself, but for the first step of assisted decoding: given a cache that holds a beginning of the
        prompt, it feeds that again (plain transformers then answers wrongly).
        """
        cache = kwargs.get(self.remote.cache_key or "")
        is_first = _guessing.get() and kwargs.get("next_sequence_length") is None
        if is_first and isinstance(cache, RemoteCache) and cache.columns:
            return kwargs | {"next_sequence_length": input_ids.shape[1] - cache.columns}
        return kwargs

    def _assisted_decoding(self, *args: Any, **kwargs: Any) -> Any:
        token = _guessing.set(True)
        try:
            result = super()._assisted_decoding(*args, **kwargs)  # type: ignore[misc]
        finally:
            _guessing.reset(token)
        steps = getattr(result, "hidden_states", None)
        if steps is not None:
            result.hidden_states = tuple(LastHiddenState(step[-1], self.remote.num_blocks) for step in steps)
        return result

    def _check_room(self, generation_config: Any, mask: Tensor | None, fed: int) -> None:
        limit = self.remote.max_positions
        columns = getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]
        padding_columns = 0 if mask is None else int(mask.eq(0).sum(1).min())
        if limit is not None and columns is not None:
            prompt = columns - padding_columns
            checks.check_length(prompt, limit, new=fed - padding_columns - prompt)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, all of it. Its session ends with it, also on exceptions, unless the result holds `past_key_values`.

        A prompt padded on the right is continued from its last real token (transformers warns, and continues from the padding).
        """
        given = dict(kwargs) if inputs is None else {**kwargs, "input_ids": inputs}
        if _guessing.get():
            given = _as_assistant(given)
        self._check_generate(given)
        given = padding.with_start(given, self._checked_cache(given.get(self.remote.cache_key or "past_key_values")))
        prompt = given.get("input_ids")
        is_moved = padding.is_right_padded(given.get("attention_mask"))
        if is_moved:
            cache = given.get(self.remote.cache_key or "")
            given = padding.aligned(given, 0 if cache is None else cache.columns)
        result = self._generate_owned(args, given)
        if not is_moved or prompt is None:
            return result
        if isinstance(result, Tensor):
            return padding.with_prompt(result, prompt)
        result.sequences = padding.with_prompt(result.sequences, prompt)
        return result

    def _generate_owned(self, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        opened: list[RemoteCache] = []
        token = _opened.set(opened)
        kept = None
        try:
            result = super().generate(None, *args, **given)  # type: ignore[misc]
            kept = getattr(result, self.remote.cache_key or "", None)
            return result
        finally:
            _opened.reset(token)
            for cache in opened:
                if cache is not kept:
                    cache.close()

    def _check_generate(self, given: dict[str, Any]) -> None:
        """What transformers would trip over with a traceback from its inside."""
        if given.get("cache_implementation") == "paged":
            raise BadRequestError(
                "cache_implementation='paged' batches on this machine; the swarm batches by itself: leave it out"
            )
        cache = self._checked_cache(given.get(self.remote.cache_key or "past_key_values"))
        ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        if ids is None and embeds is None:
            return  # transformers starts from bos_token_id
        size, columns = self._check_inputs(None if embeds is not None else ids, embeds)
        if mask is not None and cache is None:
            checks.check_mask(mask, size, columns, 0, None)
            checks.check_prompt_mask(mask)


def _as_assistant(given: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a model that drafts for one whose tokens are all real: transformers has dropped the mask that said so.

    Without it, `generate` would take the pad token for padding wherever it is in the text.
    """
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or given.get("attention_mask") is not None:
        return given
    return given | {"attention_mask": torch.ones_like(ids)}


# --- making such a model


def remote_class(base: type, *mixins: type) -> type:
    """A class of the same name as `base` (transformers looks at names) whose methods have the same signatures (and at those)."""
    own = base.forward  # type: ignore[attr-defined]
    signature = inspect.signature(own)
    names = [one.name for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD][1:]

    def outside_graphs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.remote_forward(own, names, forward_options.bound(names, args, kwargs))

    forward: Any = torch.compiler.disable(outside_graphs, reason=NO_GRAPH)
    prepare = base.prepare_inputs_for_generation  # type: ignore[attr-defined]

    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        return prepare(self, input_ids, *args, **self.only_new(input_ids, kwargs))

    forward.__signature__ = signature
    prepare_inputs_for_generation.__signature__ = inspect.signature(prepare)  # type: ignore[attr-defined]
    ours = {"forward": forward, "prepare_inputs_for_generation": prepare_inputs_for_generation}
    body = {**ours, "__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (*mixins, base), body)


def become_remote(
    model: Any, mixins: tuple[type, ...], checkpoint: Checkpoint, backend: Backend, num_blocks: int, vocab_size: int
) -> None:
    """Give a model the class whose forward and `generate` are ours, and what its checkpoint says about generating."""
    base = next(cls for cls in type(model).__mro__ if "forward" in cls.__dict__)
    model.__class__ = remote_class(type(model), *mixins)
    model.remote = Remote(
        backend=backend,
        num_blocks=num_blocks,
        vocab_size=vocab_size,
        max_positions=checkpoint.max_positions,
        cache_key=cache_key(base),
        path=checkpoint.path,
    )
    model.generation_config = contract.read_settings(checkpoint.path)
    model.name_or_path = model.config._name_or_path = str(checkpoint.path)
    model.__dict__["swarm_finalizer"] = weakref.finalize(model, backend.close)


def cache_key(base: type) -> str | None:
    parameters = inspect.signature(base.forward).parameters  # type: ignore[attr-defined]
    return next((name for name in ("past_key_values", "cache_params") if name in parameters), None)


def attach(model: nn.Module, blocks: RemoteBlocks, owner: nn.Module, attribute: str) -> None:
    """Put `blocks` where the layer list was, and keep the last hidden state within reach."""
    said = copy.copy(model.config)
    replace_blocks(model, blocks, owner, attribute)
    # what the checkpoint asks for is answered, or refused, by every forward
    for name in ("output_hidden_states", "_output_attentions"):
        model.config.__dict__[name] = getattr(said, name, False)
    remember_output(owner if isinstance(owner, PreTrainedModel) else model.get_decoder())  # type: ignore[operator]
