"""What `generate` needs to guess ahead.

A draft model, and an end that is seen wherever in a run of tokens it came.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from protocols.errors import BadRequestError
from swarm.checkpoints.resolve import resolve
from swarm.models.checkpoint import open_checkpoint
from swarm.waiting import Waits


def load_draft(name: str, model: Any, tokens: int | None = None, waits: Waits | None = None) -> Any:
    """The whole of a small model, for `model.generate(assistant_model=…)`.

    name: a directory or a Hub name. tokens: most that it guesses in one run; None = what transformers says. waits: told of what takes long.
    ModelNotFoundError, CheckpointError, or BadRequestError if it has another vocabulary than `model`.
    """
    path = resolve(name, waits=waits)
    open_checkpoint(path)  # bounds, and the reasons why a file cannot be read
    try:
        vocabulary = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True).get_vocab()
    except (OSError, ValueError, KeyError, TypeError):  # what transformers raises if there is none
        vocabulary = None
    if vocabulary != model.tokenizer.get_vocab():
        raise BadRequestError(
            f"{name} cannot draft: it has {'no' if vocabulary is None else 'another'} tokenizer than the model; "
            "give a model of the same family, or guess from the text itself: --speculate N"
        )
    draft = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    draft = draft.to(model.device).eval()
    if tokens is not None:
        draft.generation_config.num_assistant_tokens = tokens
    return draft


class _Asks(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, is_over: Callable[[], bool]) -> None:
        self._is_over = is_over

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._is_over(), dtype=torch.bool, device=input_ids.device)


def ends_when(is_over: Callable[[], bool]) -> Any:
    """Stopping criteria that ask after each run. (transformers' `stop_strings` look at the last token of a run only.)"""
    return StoppingCriteriaList([_Asks(is_over)])
