"""From logits to the next token, for streams: greedy, or temperature, top-k and top-p, in the order that `generate` uses.

With a seed, a stream draws what `generate(do_sample=True)` draws after `torch.manual_seed(seed)`: same warpers, same generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from protocols.errors import BadRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 = greedy, the likeliest token; above, the logits are divided by it before a token is drawn."""

    top_k: int = 0
    """Draw among the k likeliest; 0 = all."""

    top_p: float = 1.0
    """Draw among the likeliest that together have this probability, in (0, 1]."""

    seed: int | None = None
    """Same seed, same tokens; None = another answer every time."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise BadRequestError(f"temperature must be in [0, 100], 0 = greedy, got {self.temperature}")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise BadRequestError(
                f"top_k must be 0 (all) or more and top_p in (0, 1], got top_k={self.top_k}, top_p={self.top_p}"
            )
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise BadRequestError(f"seed must be in [0, 2^63), got {self.seed}")


class Sampler:
    """One stream's choices; its random state is its own."""

    def __init__(self, sampling: Sampling) -> None:
        self._is_greedy = sampling.temperature == 0
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)
        warpers = []
        if not self._is_greedy and sampling.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(top_k=sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(top_p=sampling.top_p))
        self._warpers = LogitsProcessorList(warpers)

    def choose(self, logits_V: Tensor) -> int:
        """The next token of a row whose last position has these logits."""
        scores = logits_V.detach().float().cpu()[None]
        if self._is_greedy:
            return int(scores.argmax())
        scores = self._warpers(torch.zeros(1, 0, dtype=torch.long), scores)
        return int(torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1, generator=self._generator))
