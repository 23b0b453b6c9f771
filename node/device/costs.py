"""Measured costs of a forward: a batch of decodes, a prompt token.

Decodes: a line over their number, by least squares in which older forwards count less and less. Most of a small batch is fixed (the
weights are read once for all), so the slope tells how much a batch saves. Prompts: the time of a forward beyond its decodes (beyond one
decode if it has none), per token, over the last few prefill chunks; this follows a context that grows. (If a prefill chunk had to bear
the fixed part, small ones would look expensive and be cut smaller still, down to a token each: docs/log.md.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KEPT = 0.98
"""Weight that a forward of decodes keeps with every later one: the last fifty count."""
KEPT_OF_PIECES = 0.7
"""The same for prefill chunks: the last three or four count."""

OUTLIER = 3.0
"""A forward counts as at most so many times its expected time: the rest is the machine's."""
NUM_TRUSTED = 5.0
"""Forwards after which the expected time is used."""

PRIOR_SHARE = 0.5
"""Before batches of different sizes were seen: the share of a forward's time that grows with its decodes."""
PRIOR_WEIGHT = 0.25
"""Variance of batch sizes that counts as much as the slope before: while all batches have one size, the slope stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """All measurements so far. `learn` returns them with one more forward."""

    weight: float = 0.0
    """Forwards of decodes, older ones counted as less."""
    rows: float = 0.0
    ms: float = 0.0
    """Means of the decodes in them and of their milliseconds."""
    spread: float = 0.0
    shared: float = 0.0
    """Variance of the number of decodes, and its covariance with milliseconds."""
    slope: float | None = None
    """Milliseconds of one more decode."""
    most_rows: int = 0
    """Most decodes that ever shared a forward."""
    piece_tokens: float = 0.0
    piece_ms: float = 0.0
    """Sums over the last prefill chunks."""

    @property
    def token_ms(self) -> float | None:
        """Milliseconds that one more token of a prompt takes; None before any was seen."""
        return self.piece_ms / self.piece_tokens if self.piece_tokens else None

    def decode_ms(self, num_rows: int) -> float:
        """Milliseconds of a forward of so many decodes; 0 before any was seen."""
        return max(0.0, self.ms + (self.slope or 0.0) * (num_rows - self.rows))

    def learn(self, num_rows: int, num_tokens: int, ms: float) -> Costs:
        """After a forward of `num_rows` decodes and `num_tokens` of prompts that took `ms`."""
        if num_tokens:
            return self._learn_piece(num_rows, num_tokens, ms)
        return self._learn_decodes(num_rows, ms) if num_rows else self

    def _learn_decodes(self, num_rows: int, ms: float) -> Costs:
        if self.weight >= NUM_TRUSTED:
            ms = min(ms, OUTLIER * self.decode_ms(num_rows))
        weight = KEPT * self.weight + 1
        share = 1 / weight
        off_rows, off_ms = num_rows - self.rows, ms - self.ms
        rows, mean_ms = self.rows + share * off_rows, self.ms + share * off_ms
        spread = (1 - share) * (self.spread + share * off_rows * off_rows)
        shared = (1 - share) * (self.shared + share * off_rows * off_ms)
        before = PRIOR_SHARE * mean_ms / rows if self.slope is None else self.slope
        slope = (shared + PRIOR_WEIGHT * before) / (spread + PRIOR_WEIGHT)
        return replace(
            self,
            weight=weight, rows=rows, ms=mean_ms, spread=spread, shared=shared,
            slope=min(max(slope, 0.0), mean_ms / rows),  # more decodes are never faster, and never slower than one by one
            most_rows=max(self.most_rows, num_rows),
        )  # fmt: skip

    def _learn_piece(self, num_rows: int, num_tokens: int, ms: float) -> Costs:
        spent = max(ms - self.decode_ms(max(1, num_rows)), 0.1 * ms)
        if self.token_ms is not None:
            spent = min(spent, 2 * OUTLIER * self.token_ms * num_tokens)
        return replace(
            self,
            piece_tokens=KEPT_OF_PIECES * self.piece_tokens + num_tokens,
            piece_ms=KEPT_OF_PIECES * self.piece_ms + spent,
        )
