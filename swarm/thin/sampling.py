"""From logits to the next token without torch.

Greedy, temperature, top-k, top-p, min-p and repetition penalty as `generate` does; presence and frequency penalty, and a bias of
single tokens, as OpenAI's API does.

Greedy picks the token that transformers picks (ties to the lowest id). Drawing follows the same distribution, in the same order
of steps (bias, penalties, temperature, top-k, top-p, min-p); the random numbers are our own, so a seed repeats an answer here, and not
torch's.

How much of the logits is needed is decided beforehand (`Chooser.asks`): the largest few if the result is provably the same, else all. A
draw from all tokens asks for the largest NUM_LIKELY and the sum over all (`StepSpec.temperature`): so their probabilities are known, and
only if the draw falls beyond them (`NotEnoughError`, a few per cent of tokens), all logits are asked for. If penalties or a bias matter
for it, the last hop makes these changes before (`Chooser.changes`), with the same arithmetic.
What is lowered (by a penalty, or a negative bias) pushes at most itself out of the largest: so with n tokens that may be lowered, the
largest k + n of the model hold the largest k of the result. Both ways draw the same tokens. numpy comes in with the first draw.

Shapes: V tokens of the vocabulary, k of them known.
"""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from protocols.defaults import MAX_TOP
from protocols.errors import BadRequestError, shown
from protocols.logit_changes import MOST_CHANGE, LogitChanges
from protocols.step_spec import MAX_TEMPERATURE, MIN_TEMPERATURE

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUPPRESSED = -MOST_CHANGE / 2
"""A logit below this is of a token that is never picked; what a mask excludes is below `EXCLUDED`, and so below this."""

NUM_LIKELY = 512
"""So many of the largest logits are asked for, if a token is drawn from all: 4 KB."""


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

    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that stand in the answer, the prompt not counted."""

    frequency_penalty: float = 0.0
    """The same, as often as the token stands there."""

    bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit), each token once."""

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
        added = (self.presence_penalty, self.frequency_penalty, *(value for _, value in self.bias))
        if not all(math.isfinite(value) for value in added):
            raise BadRequestError(f"presence_penalty, frequency_penalty and each bias are finite numbers, got {shown(added)}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def raises(self) -> bool:
        """Some logits may become larger."""
        lowers = self.repetition_penalty >= 1 and self.presence_penalty >= 0 and self.frequency_penalty >= 0
        return not lowers or any(value > 0 for _, value in self.bias)

    @property
    def counts_answer(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty)

    @property
    def is_plain(self) -> bool:
        """The model's logits are taken as they are."""
        return self.repetition_penalty == 1 and not (self.counts_answer or self.bias or self.suppressed)


class NotEnoughError(Exception):
    """The largest logits do not decide this draw. The chooser is as before it: ask for all logits, and choose again."""


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

    @property
    def total(self) -> float | None:
        """As `StepSpec.temperature`, if ids are there and it was asked for."""
        ...

    @property
    def is_changed(self) -> bool:
        """The node has changed them, as `Chooser.changes` says."""
        ...

    @property
    def own(self) -> OwnLogits | None:
        """What scores need, if ids are there and it was asked for."""
        ...


@dataclass(frozen=True, slots=True)
class OwnLogits:
    """The model's own logits, before changes and masks: of the tokens of a position, in their order; and the largest, with their ids."""

    values: bytes | memoryview
    top_values: bytes | memoryview
    top_ids: bytes | memoryview
    total: float
    """The logarithm of the sum of exp(logit) over all."""


@dataclass(frozen=True, slots=True)
class Position:
    """One position's logits, as `Logits` says."""

    values: bytes | memoryview
    ids: bytes | memoryview | None = None
    total: float | None = None
    is_changed: bool = False
    own: OwnLogits | None = None


class Chooser:
    """One answer's choices; its random state is its own."""

    own: int | None = None
    """So many of the model's own largest logits are wanted beside those that decide (`StepSpec.own`); None: nothing of its own logits."""

    def __init__(self, sampling: TokenSampling) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)

    @property
    def temperature(self) -> float:
        """As `temperature_of`, if nothing is changed at the nodes."""
        return self.temperature_of(False)

    def temperature_of(self, is_changed: bool) -> float:
        """Above 0: the sum over all logits is wanted beside those that `asks` says, as `StepSpec.temperature`."""
        own = self.sampling
        is_within = MIN_TEMPERATURE <= own.temperature <= MAX_TEMPERATURE
        return own.temperature if is_within and (own.is_plain or is_changed) and not own.top_k else 0.0

    def changes(self, before: Sequence[int], num_prompt: int, vocab_size: int) -> bytes:
        """What the last hop is to do to its logits (`StepSpec.changes`), if all of them would be needed else; empty: nothing.

        Empty also if they take more bytes than half of the logits.
        """
        own = self.sampling
        if own.is_plain or own.top_k > MAX_TOP or self._num_deciding(before, num_prompt):
            return b""
        bias = dict(one for one in own.bias if one[0] < vocab_size)
        bias |= {token: -MOST_CHANGE for token in own.suppressed if token < vocab_size}
        counts = Counter(before[num_prompt:]) if own.counts_answer else Counter[int]()
        packed = LogitChanges(
            penalty=own.repetition_penalty,
            repeated=tuple(sorted(set(before))) if own.repetition_penalty != 1 else (),
            bias=tuple(bias.items()),
            less=tuple((token, own.presence_penalty + own.frequency_penalty * count) for token, count in counts.items()),
        )
        return packed.pack() if packed.num_bytes <= 2 * vocab_size and packed.may_travel else b""

    @property
    def _few(self) -> int:
        """So many of the largest decide, if no logit is changed; 0 = all do."""
        return 1 if self.sampling.is_greedy else self.sampling.top_k if self.sampling.top_k <= MAX_TOP else 0

    def _num_deciding(self, before: Sequence[int], num_prompt: int) -> int:
        """So many of the model's own largest logits decide, which the client changes; 0 = more than a step may ask for, or all."""
        if not self._few or self.sampling.raises:
            return 0
        asked = self._few + len(self._lowered(before, num_prompt))
        return asked if asked <= MAX_TOP else 0

    def asks(self, before: Sequence[int], num_prompt: int = 0, is_changed: bool = False) -> int:
        """How many of the largest logits decide the token after `before`; 0 = all are needed. Its first `num_prompt` are the prompt's.

        is_changed: the nodes change them, as `changes` says.
        """
        if self.temperature_of(is_changed):
            return NUM_LIKELY
        return self._few if is_changed else self._num_deciding(before, num_prompt)

    def choose(self, logits: Logits, before: Sequence[int], num_prompt: int = 0, mask: bytes = b"") -> int:
        """The next token. before: every token so far, of which the first `num_prompt` are the prompt's. mask: as `StepSpec.mask`.

        BadRequestError if the mask allows none of these tokens: it allows none at all, or a node does not know masks. NotEnoughError.
        """
        if logits.ids is not None and self.sampling.is_greedy and (self.sampling.is_plain or logits.is_changed) and not mask:
            (first,) = struct.unpack_from("<i", logits.ids)
            return int(first)
        values_k, ids_k = self._candidates(logits, before, num_prompt, mask)
        if mask and (not len(ids_k) or values_k[0] <= SUPPRESSED):
            raise BadRequestError("no token may come next: the form that was asked for allows none, or a node must upgrade")
        if self.sampling.is_greedy:
            return int(ids_k[0])
        return self._draw(values_k, ids_k, None if self.sampling.top_k else logits.total)

    def _lowered(self, before: Sequence[int], num_prompt: int) -> set[int]:
        """Tokens whose logits may become smaller."""
        sampling = self.sampling
        repeated = before if sampling.repetition_penalty > 1 else before[num_prompt:] if sampling.counts_answer else ()
        return {*repeated, *sampling.suppressed, *(token for token, _ in sampling.bias)}

    def _candidates(self, logits: Logits, before: Sequence[int], num_prompt: int, mask: bytes) -> tuple[NDArray, NDArray]:  # type: ignore[type-arg]
        """Logits in descending order, ties by rising id, and their ids. What the mask excludes comes last, below `EXCLUDED`."""
        import numpy as np

        values = np.frombuffer(logits.values, dtype="<f4")
        is_all = logits.ids is None
        ids = np.arange(len(values)) if logits.ids is None else np.frombuffer(logits.ids, dtype="<i4").astype(np.int64)
        if (self.sampling.is_plain or logits.is_changed) and not is_all and not mask:
            return values, ids
        values = values.copy() if logits.is_changed else self._adjusted(values.copy(), ids, is_all, before, num_prompt)
        if mask:
            bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")
            values[bits[ids] == 0] = np.finfo(np.float32).min
        if self.sampling.is_greedy and is_all:
            best = int(values.argmax())  # the first of equals
            return values[best : best + 1], ids[best : best + 1]
        order = np.argsort(-values, kind="stable") if is_all else np.lexsort((ids, -values))
        return values[order], ids[order]

    def _adjusted(self, values: NDArray, ids: NDArray, is_all: bool, before: Sequence[int], num_prompt: int) -> NDArray:  # type: ignore[type-arg]
        """With bias and penalties. values: written to; ids: which tokens they are of, without repetition."""
        import numpy as np

        sampling, penalty = self.sampling, np.float32(self.sampling.repetition_penalty)
        place = None if is_all else {int(token): at for at, token in enumerate(ids)}

        def places(tokens: Iterable[int]) -> list[tuple[int, int]]:
            if place is None:
                return [(token, token) for token in tokens if token < len(values)]
            return [(token, place[token]) for token in tokens if token in place]

        bias = dict(sampling.bias)
        for token, at in places(bias):
            values[at] += np.float32(bias[token])
        if penalty != 1:
            seen = [at for _, at in places(set(before))]
            values[seen] = np.where(values[seen] < 0, values[seen] * penalty, values[seen] / penalty)
        if sampling.counts_answer:
            counts = Counter(before[num_prompt:])
            for token, at in places(counts):
                values[at] -= np.float32(sampling.presence_penalty + sampling.frequency_penalty * counts[token])
        values[[at for _, at in places(sampling.suppressed)]] = -np.inf
        return values

    def _draw(self, values_k: NDArray, ids_k: NDArray, total: float | None) -> int:  # type: ignore[type-arg]
        """values_k: descending. total: None = these are all that may be drawn."""
        import numpy as np

        sampling = self.sampling
        scaled = values_k.astype(np.float64) / sampling.temperature
        if sampling.top_k:
            scaled, ids_k = scaled[: sampling.top_k], ids_k[: sampling.top_k]
        chances = np.exp(scaled - (scaled[0] if total is None else total))
        if total is None:
            chances /= chances.sum()
        is_whole = total is None
        if sampling.top_p < 1:
            is_whole = is_whole or chances.sum() >= sampling.top_p
            kept = max(1, int((chances.cumsum() - chances < sampling.top_p).sum()))
            chances = chances[:kept]
        if sampling.min_p:
            is_whole = is_whole or chances[-1] < sampling.min_p * chances[0]
            chances = chances[chances >= sampling.min_p * chances[0]]
        if not is_whole and (sampling.top_p < 1 or sampling.min_p):
            raise NotEnoughError  # where they cut is not known
        return int(ids_k[self._place(chances, is_whole)])

    def _place(self, chances: NDArray, is_whole: bool) -> int:  # type: ignore[type-arg]
        """One of these by chance. is_whole: there are no others; else these are a part of 1, and NotEnoughError if the draw is beyond."""
        import numpy as np

        before, sums = self._random.getstate(), chances.cumsum()
        at = int(np.searchsorted(sums, self._random.random() * (sums[-1] if is_whole else 1.0), side="right"))
        if at < len(sums):
            return at
        if is_whole:
            return len(sums) - 1
        self._random.setstate(before)
        raise NotEnoughError
