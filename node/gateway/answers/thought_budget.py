"""Ends a thought that has used its budget.

The marks that end a thought are forced token by token, by the masks that keep answers to a form; then the model goes on as it wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from node.gateway.tools.thoughts import ThoughtTokens
from swarm.thin.channels import CHANNEL_MARK, THOUGHTS, Tokenizer
from swarm.thin.generation import Constraint
from swarm.thin.grammar.answer_form import ThoughtForm


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtLimit:
    """What each answer keeps to."""

    most: int
    """Tokens of thoughts and their marks, without the marks that end them."""

    ends: Sequence[int]
    """Tokens that end a thought."""

    refused: int | None
    """The token with which another thought would begin behind the last of them."""

    vocab_size: int


def limit_of(tokenizer: Tokenizer, form: ThoughtForm, budget_tokens: int, vocab_size: int) -> ThoughtLimit:
    """Of thoughts of this form; blocks."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    behind = form.behind and form.behind + CHANNEL_MARK
    return ThoughtLimit(
        most=budget_tokens - len(ids(form.end)),
        ends=ids(form.end + behind),
        refused=ids(THOUGHTS)[0] if behind else None,
        vocab_size=vocab_size,
    )


class ThoughtBudget:
    """`generation.Constraint` of one answer."""

    def __init__(self, limit: ThoughtLimit, thoughts: ThoughtTokens, form: Constraint | None) -> None:
        """thoughts: gets each token of the answer before the next mask is asked for. form: what else the answer keeps to."""
        self._limit, self._thoughts, self._form = limit, thoughts, form
        self._left: list[int] = []
        """Tokens that are still to be forced."""
        self._last: int | None = None
        """The token that has just come."""

    async def mask(self) -> bytes:
        """As `Constraint.mask`; empty = any token."""
        mask = b"" if self._form is None else await self._form.mask()
        if not 0 < len(self._left) < len(self._limit.ends):  # none of them has come yet
            self._left = list(self._limit.ends) if self._has_no_more and self._thoughts.is_thinking else []
        size, refused = (self._limit.vocab_size + 7) // 8, self._limit.refused
        if self._left:
            return _both(mask, (1 << self._left[0]).to_bytes(size, "little"))
        if refused is not None and self._last == self._limit.ends[-1] and self._has_no_more:
            return _both(mask, ((1 << self._limit.vocab_size) - 1 ^ 1 << refused).to_bytes(size, "little"))
        return mask

    def accept(self, token: int) -> None:
        """As `Constraint.accept`."""
        self._last = token
        self._left = self._left[1:] if self._left[:1] == [token] else []
        if self._form is not None:
            self._form.accept(token)

    @property
    def _has_no_more(self) -> bool:
        return self._thoughts.num >= self._limit.most


def _both(form: bytes, own: bytes) -> bytes:
    """What both allow. If that is nothing, as in the middle of a letter, what the form allows."""
    both = bytes(one & other for one, other in zip(form, own, strict=True)) if form else own
    return both if any(both) else form
