"""Prompts as token ids, and whether a model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from node.gateway.answers.calls import check_tools
from node.gateway.answers.effort import Effort, variables_of
from node.gateway.answers.models import ServedModel
from node.gateway.answers.request import Prompt, Request
from node.gateway.http.refusal import RefusedError
from protocols.words import counted
from swarm.thin.tokenizing import templates

MOST_NEW = 4096
"""Longest answer if the request does not say how long it may be."""


def ids_of(
    served: ServedModel, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = (), effort: Effort | None = None
) -> list[int]:
    """Token ids of a prompt; blocks. RefusedError if the model cannot think as it should."""
    tokenizer = served.model.tokenizer
    variables = variables_of(effort, None if isinstance(prompt, tuple | str) else tokenizer.chat_template)
    if isinstance(prompt, tuple):
        return list(prompt)
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    return templates.ids_of(tokenizer, prompt, tools, variables)


async def num_tokens(
    served: ServedModel, prompt: Prompt, tools: Sequence[Mapping[str, Any]] = (), effort: Effort | None = None
) -> int:
    """Of a prompt, however long it is; the tokenizer's error if it has none, and as of `ids_of`."""
    check_tools(tools, served.model.tokenizer.chat_template)
    return len(await served.aside(ids_of, served, prompt, tools, effort))


def check_ids(served: ServedModel, ids: Sequence[int], param: str) -> None:
    """RefusedError if one of them is not the model's."""
    most = served.model.defaults.vocab_size - 1
    wrong = next((token for token in ids if not 0 <= token <= most), None)
    if wrong is not None:
        raise RefusedError(f"{param}: token id {wrong} is out of range: this model has ids 0 to {most}", param)


def check_prompt(served: ServedModel, ids: Sequence[int], param: str) -> None:
    """RefusedError if there is nothing in it, or more than the model takes."""
    limit = served.model.defaults.max_positions
    check_ids(served, ids, param)
    if not ids:
        raise RefusedError("the prompt is empty: 0 tokens, expected at least 1; give some text", param)
    if limit is not None and len(ids) > limit:
        raise RefusedError(
            f"the prompt is too long: {counted(len(ids), 'token')}, this model's limit is {limit}; shorten it by {len(ids) - limit}",
            param, "context_length_exceeded",
        )  # fmt: skip


def check_length(served: ServedModel, request: Request, ids: Sequence[int]) -> None:
    """RefusedError if there is nothing to continue, or an answer has no place behind it."""
    asked, param, limit = request.max_new_tokens, request.prompt_param, served.model.defaults.max_positions
    check_prompt(served, ids, param)
    check_ids(served, [token for token, _ in request.picking.bias], "logit_bias")
    if limit is not None and asked is not None and len(ids) + asked - 1 > limit:
        raise RefusedError(
            f"{counted(len(ids), 'token')} of prompt and {asked} new ones exceed this model's limit of {limit}; "
            f"ask for at most {limit - len(ids) + 1} new ones",
            param, "context_length_exceeded",
        )  # fmt: skip


def most_new(served: ServedModel, request: Request, ids: Sequence[int]) -> int:
    """Tokens that an answer to `ids` may have."""
    if request.max_new_tokens is not None:
        return request.max_new_tokens
    limit = served.model.defaults.max_positions
    return MOST_NEW if limit is None else min(MOST_NEW, limit - len(ids) + 1)
