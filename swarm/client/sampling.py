"""How a stream picks its next token.

Greedily, or by temperature, top-k and top-p, with its own seed.

With a seed, a stream draws what `generate(do_sample=True)` draws after `torch.manual_seed(seed)`. Torch's generator is one for all
threads, so a stream has its own, and draws itself (`Draw`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

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

    def is_greedy(self, options: Mapping[str, Any]) -> bool:
        """options: other arguments of `generate`; `do_sample` is the only one that counts here."""
        return not options.get("do_sample", self.temperature > 0)

    def arguments(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`. With do_sample=True, what was not said is as the checkpoint says."""
        if self.is_greedy(options):  # None: a checkpoint's own sampling settings would be warned about
            return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        said = {"do_sample": True, "temperature": float(self.temperature), "top_k": self.top_k, "top_p": self.top_p}
        if self.temperature > 0:
            return said
        usual = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
        return {name: value for name, value in said.items() if value != usual.get(name)}

    def draw(self, options: Mapping[str, Any]) -> Draw | None:
        """What draws this stream's tokens; None if it is greedy."""
        return None if self.is_greedy(options) else Draw(self.seed)


class Draw(LogitsProcessor):  # type: ignore[misc]
    """The last of a stream's logits processors: draws a token with a generator of its own, and leaves only that one possible."""

    def __init__(self, seed: int | None) -> None:
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores_BV: Tensor) -> Tensor:
        probabilities = torch.softmax(scores_BV.cpu(), dim=-1)
        drawn = torch.multinomial(probabilities, num_samples=1, generator=self._generator).to(scores_BV.device)
        return torch.full_like(scores_BV, float("-inf")).scatter(1, drawn, 0.0)
