"""What the chat page asks, and what it hears."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.datastructures import Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A conversation that is to go on."""

    model: str
    messages: tuple[tuple[str, str], ...]
    """Role (`system`, `user`, `assistant`) and text, the oldest first."""

    settings: Mapping[str, float | int] = field(default_factory=dict)
    """By the names of OpenAI's API; what is not here is as the model says."""


@dataclass(frozen=True, slots=True)
class Said:
    """Some more text."""

    text: str
    num_tokens: int
    """Of the answer so far."""

    is_thought: bool = False
    """It is no part of the answer, but what the model thinks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopReport:
    """What one node has done for an answer."""

    peer: str
    blocks: str
    num_steps: int
    queue_ms: float
    compute_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One answer is complete."""

    reason: str
    num_prompt: int
    num_new: int
    first_s: float
    """From the question to the first text."""

    rest_s: float
    stages: tuple[tuple[str, str, float, float], ...]
    """T1 to T9: name, meaning, milliseconds for the prompt and for a token after it."""

    hops: tuple[HopReport, ...]
    """In the order in which they came; a node that was replaced stays."""

    num_replaced: int
    """Nodes that were lost in the middle of the answer."""

    @property
    def tokens_per_s(self) -> float:
        """After the first text."""
        return (self.num_new - 1) / self.rest_s if self.rest_s > 0 and self.num_new > 1 else 0.0


class TalkRefusedError(Exception):
    """Why there is no answer, or no more of it: one line for a person."""


class Talk(Protocol):
    """Answers questions."""

    def names(self) -> Sequence[str]:
        """Models that can be asked."""
        ...

    def answer(self, ask: Question, headers: Headers) -> AsyncGenerator[Said | Report, None]:
        """The answer as it comes, then one Report. headers: who asks. TalkRefusedError; closing the generator ends the answer."""
        ...
