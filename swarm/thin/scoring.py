"""Log-probabilities of the tokens of an answer, as the model gives them.

They are those of the model's own logits, before bias, penalties, masks and temperature: what a token's chance was, not how it was drawn.
They need the sum over the whole vocabulary. If tokens are taken as the model gives them, the likeliest, among its k largest or drawn at
temperature 1, the last hop sends that sum beside the largest logits; else it sends what decides, and beside it the model's own (`scored` of
`StepSpec`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.thin.sampling import NUM_LIKELY, Chooser, Logits, TokenSampling


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

    def __init__(self, sampling: TokenSampling, num_top: int, is_masked: bool = False) -> None:
        """is_masked: a mask excludes tokens; scores do not know of it."""
        super().__init__(sampling)
        self._num_top = num_top
        few = self._few or (NUM_LIKELY if sampling.temperature == 1 and not sampling.top_k else 0)
        self._few_of_own = few if sampling.is_plain and not is_masked else 0
        """So many of the model's own largest logits decide, and one sum is that of the draw and of the scores; 0: they do not."""
        self.own = None if self._few_of_own else num_top
        self.last: Scored | None = None

    def temperature_of(self, is_changed: bool) -> float:
        return 1.0 if self._few_of_own else super().temperature_of(is_changed)

    def asks(self, before: Sequence[int], num_prompt: int = 0, is_changed: bool = False) -> int:
        return max(self._few_of_own, self._num_top) if self._few_of_own else super().asks(before, num_prompt, is_changed)

    def choose(self, logits: Logits, before: Sequence[int], num_prompt: int = 0, mask: bytes = b"") -> int:
        token = super().choose(logits, before, num_prompt, mask)
        self.last = scored(logits, token, self._num_top)
        return token


def scored(logits: Logits, token: int, num_top: int) -> Scored:
    """logits: all of them; or the largest, the token among them, with their total at temperature 1 or with the model's own."""
    import numpy as np

    values = np.frombuffer(logits.values, dtype="<f4").astype(np.float64)
    if logits.ids is not None:
        return _scored_of_few(logits, token, num_top)
    largest = values.max()
    norm = largest + math.log(np.exp(values - largest).sum())
    top = np.argsort(-values, kind="stable")[:num_top]
    return Scored(token, float(values[token] - norm), tuple((int(one), float(values[one] - norm)) for one in top))


def _scored_of_few(logits: Logits, token: int, num_top: int) -> Scored:
    own, ids = logits.own, logits.ids
    if own is None:
        assert logits.total is not None and ids is not None
        found = _pairs(logits.values, ids, logits.total)
        return Scored(token, dict(found)[token], found[:num_top])
    assert ids is not None
    return Scored(token, dict(_pairs(own.values, ids, own.total))[token], _pairs(own.top_values, own.top_ids, own.total))


def _pairs(values: bytes | memoryview, ids: bytes | memoryview, total: float) -> tuple[tuple[int, float], ...]:
    """Tokens and their log-probabilities."""
    import numpy as np

    numbers = np.frombuffer(values, dtype="<f4").astype(np.float64) - total
    return tuple(zip(np.frombuffer(ids, dtype="<i4").tolist(), numbers.tolist(), strict=True))
