"""Log-probabilities of the tokens of an answer, as the model gives them.

They are those of the model's own logits, before bias, penalties and temperature: what a token's chance was, not how it was drawn.
They need the sum over the whole vocabulary, so all logits travel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.thin.sampling import Chooser, Logits, TokenSampling


@dataclass(frozen=True, slots=True)
class Scored:
    """One token that was picked."""

    token: int
    logprob: float
    """Natural logarithm of its probability; -inf if the model excludes it."""
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens with theirs, likeliest first, ties to the lowest id."""


class ScoringChooser(Chooser):
    """Picks what `Chooser` picks, and keeps the score of the last token."""

    def __init__(self, sampling: TokenSampling, num_top: int) -> None:
        super().__init__(sampling)
        self._num_top = num_top
        self.last: Scored | None = None

    def asks(self, before: Sequence[int], num_prompt: int = 0) -> int:
        return 0

    def choose(self, logits: Logits, before: Sequence[int], num_prompt: int = 0, mask: bytes = b"") -> int:
        token = super().choose(logits, before, num_prompt, mask)
        self.last = scored(logits, token, self._num_top)
        return token


def scored(logits: Logits, token: int, num_top: int) -> Scored:
    """logits: all of them."""
    import numpy as np

    assert logits.ids is None
    values = np.frombuffer(logits.values, dtype="<f4").astype(np.float64)
    largest = values.max()
    norm = largest + math.log(np.exp(values - largest).sum())
    top = np.argsort(-values, kind="stable")[:num_top]
    return Scored(token, float(values[token] - norm), tuple((int(one), float(values[one] - norm)) for one in top))
