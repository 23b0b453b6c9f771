"""OpenAI's `/v1/completions`: a text in, its continuation out.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from itertools import accumulate
from typing import Annotated, Any

from pydantic import Field

from node.gateway.answers.answer import End, Piece, TokenText
from node.gateway.answers.answering import Answering
from node.gateway.answers.request import MAX_CHOICES, Prompt, Request
from node.gateway.answers.writer import Made
from node.gateway.http.form import Text, Whole, only
from node.gateway.http.refusal import RefusedError
from node.gateway.openai.form import GeneratingBody, OpenAiWriter, logprob

TokenIds = Annotated[list[Annotated[Whole, Field(ge=0, lt=1 << 31)]], Field(max_length=1 << 20)]

MAX_SCORED = 20
"""Likeliest tokens that are reported beside each; OpenAI's own limit is 5."""


class CompletionBody(GeneratingBody):
    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(max_length=MAX_CHOICES)]
        | Annotated[list[TokenIds], Field(max_length=MAX_CHOICES)]
    )
    logprobs: Whole | None = Field(None, ge=0, le=MAX_SCORED)
    best_of: only(1) = None  # type: ignore[valid-type]
    echo: only(False) = None  # type: ignore[valid-type]
    suffix: only("") = None  # type: ignore[valid-type]

    def prompts(self) -> tuple[Prompt, ...]:
        """One or several."""
        given = self.prompt
        if isinstance(given, str):
            return (given,)
        if all(isinstance(one, int) for one in given):
            return (tuple(one for one in given if isinstance(one, int)),)
        return tuple(one if isinstance(one, str) else tuple(one) for one in given if not isinstance(one, int))

    def request(self) -> Request:
        """RefusedError if fields contradict each other."""
        prompts, num_choices = self.prompts(), self.n or 1
        if len(prompts) * num_choices > MAX_CHOICES:
            raise RefusedError(
                f"{len(prompts)} prompts with n = {num_choices} are {len(prompts) * num_choices} answers; "
                f"at most {MAX_CHOICES} in one request",
                "n",
            )
        return Request(
            model=self.model,
            prompts=prompts,
            prompt_param="prompt",
            picking=self.picking(),
            wants_timings=bool(self.timings),
            num_choices=num_choices,
            max_new_tokens=self.max_tokens or USUAL_TOKENS,
            stops=self.stops(),
            num_scored=self.logprobs,
        )


USUAL_TOKENS = 16
"""Length of an answer if the request does not say it: OpenAI's."""


class CompletionWriter(OpenAiWriter):
    """How a choice looks."""

    kind, stream_kind, prefix = "text_completion", "text_completion", "cmpl-"

    def __init__(self, answering: Answering, created_s: float, includes_usage: bool) -> None:
        super().__init__(answering, created_s, includes_usage)
        self._offsets: dict[int, int] = {}
        """Letters of each answer that were sent."""

    def _opening(self, choice: int) -> None:
        """A stream begins with the first text."""

    def _piece(self, piece: Piece) -> dict[str, Any]:
        offset = self._offsets.get(piece.choice, 0)
        self._offsets[piece.choice] = offset + sum(len(token.text) for token in piece.tokens)
        scores = scores_of(piece.tokens, offset) if piece.tokens else None
        return {"index": piece.choice, "text": piece.text, "logprobs": scores, "finish_reason": None}

    def _end(self, end: End) -> dict[str, Any]:
        return {"index": end.choice, "text": "", "logprobs": None, "finish_reason": end.reason}

    def _made(self, made: Made) -> dict[str, Any]:
        scores = scores_of(tuple(made.tokens), 0) if self.request.num_scored is not None else None
        return {"index": made.choice, "text": made.text, "logprobs": scores, "finish_reason": made.reason}


def scores_of(tokens: tuple[TokenText, ...], offset: int) -> dict[str, Any]:
    """offset: letters of the answer before these tokens."""
    starts = list(accumulate((len(token.text) for token in tokens), initial=offset))[:-1]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [logprob(token.logprob) for token in tokens],
        "top_logprobs": [{text: logprob(value) for text, value in token.top} for token in tokens],
        "text_offset": starts,
    }
