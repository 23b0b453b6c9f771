"""What a client asks for, in one form for all APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from node.gateway.answers.effort import Effort
from node.gateway.tools.calling import Calling
from swarm.thin.defaults import Defaults
from swarm.thin.sampling import TokenSampling
from swarm.thin.settings import Wanted
from swarm.thin.tokenizing.templates import Message

Prompt = Sequence[Message] | str | tuple[int, ...]
"""A conversation for the model's chat template, a text that is continued as it stands, or its token ids."""

MAX_CHOICES = 16
"""Answers to one request, over all of its prompts: each is a session at the nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picking:
    """How tokens are picked; what is not asked for is as the model's own settings say, else the likeliest token."""

    drawn: Mapping[str, float] = field(default_factory=dict)
    """What was given of temperature, top_p, top_k and min_p."""

    seed: int | None = None
    repetition_penalty: float | None = None
    """None = the checkpoint's."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()

    def sampling(self, defaults: Defaults, number: int) -> TokenSampling:
        """For answer `number` of a prompt: the first has the seed that was given, as in `swarm generate`, each further one the next.

        ModelNotSupportedError for a setting of the checkpoint that changes tokens and is not known here.
        """
        seed = None if self.seed is None else self.seed + number
        found = defaults.sampling(Wanted(asked=self.drawn, as_model_says=True), seed)
        penalty = found.repetition_penalty if self.repetition_penalty is None else self.repetition_penalty
        return replace(
            found, repetition_penalty=penalty, presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty, bias=self.bias,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One or more prompts, each to be answered `num_choices` times."""

    model: str
    prompts: tuple[Prompt, ...]
    picking: Picking
    prompt_param: str
    """What the API calls the field of the prompts, for errors."""

    num_choices: int = 1
    max_new_tokens: int | None = None
    """None = up to the model's limit, or the gateway's if that is lower."""

    stops: tuple[str, ...] = ()
    """Texts at which an answer ends; they are not part of it."""

    schema: str | None = None
    """A JSON schema, as JSON, that each answer keeps to; None = any text."""

    schema_param: str = "response_format"
    """What the API calls the field of the schema, for errors."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model may call, as OpenAI's API describes functions."""

    calling: Calling | None = None
    """How the tools are to be called; None = as the model wants, and as it writes it."""

    effort: Effort | None = None
    """How much the model thinks; None = as it does by itself."""

    thought_budget: int | None = None
    """Tokens of thoughts after which the model has to answer; None = as many as it wants."""

    budget_param: str = "thinking_token_budget"
    """What the API calls the field of the budget, for errors."""

    num_scored: int | None = None
    """Report the log-probability of each token and of so many of the likeliest ones; None = none at all."""

    scores_calls: bool = True
    """The tokens of calls are among those that are reported; False: only those of text."""

    wants_timings: bool = False
    """Say in the answer how long each part took."""

    @property
    def is_conversation(self) -> bool:
        """The model's chat template makes the prompts."""
        return not any(isinstance(prompt, str | tuple) for prompt in self.prompts)

    @property
    def num_answers(self) -> int:
        return len(self.prompts) * self.num_choices
