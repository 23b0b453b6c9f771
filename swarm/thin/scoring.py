"""Log-probabilities of the tokens of an answer, as the model gives them.

They are those of the model's own logits, before bias, penalties and temperature: what a token's chance was, not how it was drawn.
They need the sum over the whole vocabulary. If tokens are taken as the model gives them, the likeliest or drawn at temperature 1, the last
hop sends that beside the largest logits; else all logits travel.
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
        is_drawn = (
            sampling.temperature == 1 and not sampling.top_k
        )  # then one sum is both, that of the draw and that of the scores
        self._needs_all = is_masked or not sampling.is_plain or not (sampling.is_greedy or is_drawn)
        self.last: Scored | None = None

    def temperature_of(self, is_changed: bool) -> float:
        return 0.0 if self._needs_all else 1.0

    def changes(self, before: Sequence[int], num_prompt: int, vocab_size: int) -> bytes:
        """None: the scores are of the model's own logits."""
        return b""

    def asks(self, before: Sequence[int], num_prompt: int = 0, is_changed: bool = False) -> int:
        few = 1 if self.sampling.is_greedy else NUM_LIKELY
        return 0 if self._needs_all else max(few, self._num_top)

    def choose(self, logits: Logits, before: Sequence[int], num_prompt: int = 0, mask: bytes = b"") -> int:
        token = super().choose(logits, before, num_prompt, mask)
        self.last = scored(logits, token, self._num_top)
        return token


def scored(logits: Logits, token: int, num_top: int) -> Scored:
    """logits: all of them, or the largest, the token among them, with their total at temperature 1."""
    import numpy as np

    values = np.frombuffer(logits.values, dtype="<f4").astype(np.float64)
    if logits.ids is not None:
        assert logits.total is not None
        found = list(zip(np.frombuffer(logits.ids, dtype="<i4").tolist(), (values - logits.total).tolist(), strict=True))
        return Scored(token, dict(found)[token], tuple(found[:num_top]))
    largest = values.max()
    norm = largest + math.log(np.exp(values - largest).sum())
    top = np.argsort(-values, kind="stable")[:num_top]
    return Scored(token, float(values[token] - norm), tuple((int(one), float(values[one] - norm)) for one in top))
