"""From logits to the next token without torch.

Greedy, temperature, top-k, top-p, min-p and repetition penalty, as `generate` does.

Greedy picks the token that transformers picks (ties to the lowest id). Drawing follows the same distribution, in the same order
of steps (penalty, temperature, top-k, top-p, min-p); the random numbers are our own, so a seed repeats an answer here, and not torch's.

How much of the logits is needed is decided beforehand (`TokenSampling.asks`): the largest few if the result is provably the same,
else all. Both ways draw the same tokens. numpy comes in with the first draw; greedy needs none.

Shapes: V tokens of the vocabulary, k of them known.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protocols.errors import BadRequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ASKED = 64
"""Above this top-k, all logits travel instead of the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSampling:
    """How the next token is picked."""

    temperature: float = 0.0
    """0 = greedy; above, logits are divided by it before a token is drawn."""

    top_k: int = 0
    """Draw among the k largest logits, ties to the lowest id; 0 = all."""

    top_p: float = 1.0
    """Draw among the likeliest that together have this probability, in [0, 1]; at least one."""

    min_p: float = 0.0
    """Draw among those that have at least this share of the likeliest's probability, in [0, 1]."""

    repetition_penalty: float = 1.0
    """Above 1, tokens that stand in the prompt or the answer become less likely (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""

    suppressed: tuple[int, ...] = ()
    """Never picked."""

    seed: int | None = None
    """Same seed, same tokens; None = another answer every time."""

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.repetition_penalty <= 0 or self.top_k < 0:
            raise BadRequestError(
                "temperature and top_k are 0 or more and repetition_penalty is above 0, "
                f"got {self.temperature}, {self.top_k} and {self.repetition_penalty}"
            )
        if not 0 <= self.top_p <= 1 or not 0 <= self.min_p <= 1:
            raise BadRequestError(f"top_p and min_p are between 0 and 1, got {self.top_p} and {self.min_p}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def asks(self) -> int:
        """How many of the largest logits decide; 0 = all are needed."""
        if self.repetition_penalty != 1 or self.suppressed:
            return 0
        if self.is_greedy:
            return 1
        return self.top_k if 0 < self.top_k <= MAX_ASKED else 0


class Logits(Protocol):
    """What one position's answer is: the largest logits with their ids, largest first, or all of them."""

    @property
    def values(self) -> bytes | memoryview:
        """float32, little-endian: k of them, or V."""
        ...

    @property
    def ids(self) -> bytes | memoryview | None:
        """int32, little-endian; None: all V, in the order of their ids."""
        ...


@dataclass(frozen=True, slots=True)
class Position:
    """One position's logits, as `Logits` says."""

    values: bytes | memoryview
    ids: bytes | memoryview | None = None


class Chooser:
    """One answer's choices; its random state is its own."""

    def __init__(self, sampling: TokenSampling) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)

    def choose(self, logits: Logits, before: Sequence[int]) -> int:
        """The next token. before: every token so far, prompt included."""
        if logits.ids is not None and self.sampling.is_greedy:
            (first,) = struct.unpack_from("<i", logits.ids)
            return int(first)
        values_k, ids_k = self._candidates(logits, before)
        if self.sampling.is_greedy:
            return int(ids_k[0])
        return self._draw(values_k, ids_k)

    def _candidates(self, logits: Logits, before: Iterable[int]) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
        """Logits in descending order, ties by rising id, and their ids."""
        import numpy as np

        values = np.frombuffer(logits.values, dtype="<f4")
        if logits.ids is not None:
            return values, np.frombuffer(logits.ids, dtype="<i4")
        values = self._penalized(values.copy(), before)
        if self.sampling.is_greedy:
            best = int(values.argmax())  # the first of equals
            return values[best : best + 1], np.array([best])
        order = np.argsort(-values, kind="stable")
        return values[order], order

    def _penalized(self, values: NDArray, before: Iterable[int]) -> NDArray:  # type: ignore[type-arg]
        import numpy as np

        penalty = np.float32(self.sampling.repetition_penalty)
        if penalty != 1:
            seen = np.fromiter(set(before), dtype=np.int64)
            seen = seen[seen < len(values)]
            values[seen] = np.where(values[seen] < 0, values[seen] * penalty, values[seen] / penalty)
        values[[token for token in self.sampling.suppressed if token < len(values)]] = -np.inf
        return values

    def _draw(self, values_k: NDArray, ids_k: NDArray) -> int:  # type: ignore[type-arg]
        """values_k: descending."""
        import numpy as np

        scaled = values_k.astype(np.float64) / self.sampling.temperature
        if self.sampling.top_k:
            scaled, ids_k = scaled[: self.sampling.top_k], ids_k[: self.sampling.top_k]
        chances = np.exp(scaled - scaled[0])
        if self.sampling.top_p < 1:
            chances /= chances.sum()
            kept = max(1, int((chances.cumsum() - chances < self.sampling.top_p).sum()))
            chances = chances[:kept]
        if self.sampling.min_p:
            chances = chances[chances >= self.sampling.min_p * chances[0]]
        sums = chances.cumsum()
        at = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(ids_k[min(at, len(sums) - 1)])
