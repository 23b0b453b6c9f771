"""`generate` of a model with remote blocks.

It is transformers' own; what it asks the model on its way is answered here, and its sessions end when they should.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.generation.configuration_utils import GenerationMode

from protocols.errors import BadRequestError
from swarm.client import checks, contract, padding
from swarm.client.cache import RemoteCache
from swarm.client.forward import RemoteForward, guessing, opened
from swarm.client.hidden_states import LastHiddenState


class RemoteGeneration(RemoteForward):
    """Comes before the model's own class in a class made for it (`remote_class.py`)."""

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
            if (ours := opened.get()) is not None:
                ours.append(cache)

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

    def _only_new(self, input_ids: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `prepare_inputs_for_generation` that feed only what the cache does not hold.

        transformers 5.23 says so itself, but for the first step of assisted decoding: given a cache that holds a beginning of the
        prompt, it feeds that again (plain transformers then answers wrongly).
        """
        cache = kwargs.get(self.remote.cache_key or "")
        is_first = guessing.get() and kwargs.get("next_sequence_length") is None
        if is_first and isinstance(cache, RemoteCache) and cache.columns:
            return kwargs | {"next_sequence_length": input_ids.shape[1] - cache.columns}
        return kwargs

    def _assisted_decoding(self, *args: Any, **kwargs: Any) -> Any:
        token = guessing.set(True)
        try:
            result = super()._assisted_decoding(*args, **kwargs)  # type: ignore[misc]
        finally:
            guessing.reset(token)
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
        if guessing.get():
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
        ours: list[RemoteCache] = []
        token = opened.set(ours)
        kept = None
        try:
            result = super().generate(None, *args, **given)  # type: ignore[misc]
            kept = getattr(result, self.remote.cache_key or "", None)
            return result
        finally:
            opened.reset(token)
            for cache in ours:
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
        size, columns = checks.check_inputs(None if embeds is not None else ids, embeds, self.remote.vocab_size)
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
