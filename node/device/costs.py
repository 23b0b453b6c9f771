"""What a forward costs here: milliseconds of a batch of decodes, and of one token of a prompt, learnt from the forwards that ran.

Decodes: a line over their number, by least squares in which older forwards count less and less. Most of a small batch is fixed (the
weights are read once for all), so the slope is what tells whether rows share well. Prompts: what a forward took beyond its decodes, or,
without any, beyond what one row takes, by token, over the last few pieces; it follows a context that grows by itself. (If a piece bore
what every forward costs, small pieces would look dear and be cut smaller still, down to a token each: docs/log.md.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KEPT = 0.98
"""Weight that a forward of decodes keeps with every later one: the last fifty count."""
KEPT_OF_PIECES = 0.7
"""As above, of prompts' pieces: the last three or four count."""

OUTLIER = 3.0
"""A forward that takes longer than so many times what was expected says more about the machine than about itself."""
NUM_TRUSTED = 5.0
"""From so many forwards on an expectation is one."""

PRIOR_SHARE = 0.5
"""Before batches of different sizes were seen: the share of a forward's time that grows with its rows."""
PRIOR_WEIGHT = 0.25
"""How much spread in their sizes outweighs what was known of the slope: while all are of one size, it stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What was learnt so far. `learn` gives what is known after one forward more."""

    weight: float = 0.0
    """Forwards of decodes that count, older ones less."""
    rows: float = 0.0
    ms: float = 0.0
    """Means of the decodes in them and of their milliseconds."""
    spread: float = 0.0
    shared: float = 0.0
    """Variance of rows, and covariance with milliseconds."""
    slope: float | None = None
    """Milliseconds of one more row."""
    most_rows: int = 0
    """Most decodes that ever shared a forward."""
    piece_tokens: float = 0.0
    piece_ms: float = 0.0
    """Sums over the last pieces of prompts."""

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
            slope=min(max(slope, 0.0), mean_ms / rows),  # more rows are never faster, nor dearer than one by one
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
