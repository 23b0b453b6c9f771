"""Settings of `generate` that change what its caller gets.

Which work here, which are refused, which have no effect.

The settings come from `generation_config.json`, from `config.json` and from the call; transformers has merged them when it asks here.
Everything is decided before a byte is sent.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from protocols.errors import BadRequestError, CheckpointError

log = logging.getLogger(__name__)

WITHOUT_EFFECT = ("cache_implementation", "cache_config", "compile_config")
"""Settings about keys and values, or code, of this machine: here both are at the hops."""

EXTRA_OUTPUTS = ("output_attentions", "output_hidden_states", "output_scores", "output_logits")


def check_use_cache(settings: Any, has_cache: bool, is_guessing: bool) -> None:
    """`use_cache=False` feeds the whole text at every step: no cache of the caller fits that, and nothing can be taken back."""
    if settings.use_cache is not False or not (has_cache or is_guessing):
        return
    what = (
        "past_key_values came, but every step would feed the whole text again, behind what they hold"
        if has_cache
        else "speculation takes back wrong guesses, which needs a cache"
    )
    raise BadRequestError(
        f"use_cache is off (in the call, or in the checkpoint's generation_config.json or config.json): {what}; pass use_cache=True"
    )


def without_unread_outputs(settings: Any, arguments: dict[str, Any]) -> None:
    """Where only tokens are returned, ask no forward for more: transformers ignores these settings then."""
    if not settings.return_dict_in_generate:
        for name in EXTRA_OUTPUTS:
            setattr(settings, name, False)
            arguments.pop(name, None)


def say_what_is_ignored(settings: Any) -> None:
    """Once for each setting in a process."""
    for name in WITHOUT_EFFECT:
        if getattr(settings, name, None) is not None:
            _warn_once(name)


@cache
def _warn_once(name: str) -> None:
    log.warning("%s has no effect: keys, values and compiled code of the blocks are at the nodes, which decide about them", name)


def read_settings(directory: Path) -> GenerationConfig:
    """The checkpoint's generation config, from the file that transformers reads: without a `generation_config.json` the words in
    `config.json` count, and no defaults of the config's class. CheckpointError if transformers refuses the file."""
    has_own = (directory / "generation_config.json").exists()
    name = "generation_config.json" if has_own else "config.json"
    try:
        return GenerationConfig.from_pretrained(
            directory, config_file_name=name, local_files_only=True, _from_model_config=not has_own
        )
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:  # what transformers raises, by kind of mistake
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise CheckpointError(f"{name} of {directory} cannot be used: {reason}; correct or remove it") from error
