"""What an answer consists of, in one form for all APIs."""

from __future__ import annotations

from dataclasses import dataclass, field

from node.gateway.tools.tool_calls import ToolCall
from swarm.thin.scoring import Scored
from swarm.timings import Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenText:
    """A token that was picked, with its log-probability, and those of the likeliest ones. Texts are of single tokens."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next part of an answer."""

    choice: int
    """The answer's number, counted prompt by prompt."""

    text: str
    """Empty if the last tokens give no certain text yet."""

    tokens: tuple[TokenText, ...] = ()
    """The tokens since the last piece, if their log-probabilities are wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One answer is complete."""

    choice: int
    reason: str
    """`stop`: the model, or a stop text, has ended it; `tool_calls`: so it has, and waits for results of tools; `length`: it has as many
    tokens as it may have."""

    num_new: int
    """Tokens of the answer, an end token included."""

    num_cached: int = 0
    """Tokens of the prompt that were not computed again, since hops had kept them of an earlier request."""

    num_thought: int = 0
    """Of the new tokens, those of thoughts and their marks."""

    stop: str | None = None
    """The stop text of the request that has ended it."""

    num_replaced: int = 0
    """Nodes that were lost in the middle of it, and replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """The model calls a tool; the text of a call is not part of the answer."""

    choice: int
    call: ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The next part of what the model thinks, which is not part of the answer."""

    choice: int
    text: str


Event = Piece | Thinking | Called | End


@dataclass(slots=True)
class Usage:
    """What one request has cost."""

    num_prompt: int = 0
    num_cached: int = 0
    """Of these, tokens that hops had kept of an earlier request; known with the end of an answer."""

    num_new: int = 0
    num_thought: int = 0
    """Of these, tokens of thoughts and their marks."""

    load_s: float = 0.0
    """Seconds until the prompts were encoded."""

    first_s: float = 0.0
    """Seconds from then to the first event of an answer."""

    rest_s: float = 0.0
    """Seconds from then to the end of all answers."""

    timings: dict[int, Timings] = field(default_factory=dict)
    """Of each answer that has begun, by its number; T1 and T2 are the request's."""

    def add(self, end: End) -> None:
        self.num_new += end.num_new
        self.num_thought += end.num_thought
        self.num_cached += end.num_cached


def decoded(scored: Scored, texts: dict[int, str]) -> TokenText:
    """texts: of the token and of the likeliest ones."""
    return TokenText(
        text=texts[scored.token], logprob=scored.logprob, top=tuple((texts[token], value) for token, value in scored.top)
    )
