"""Measured costs of a forward: a batch of decodes, a prompt token.

Decodes: a line over their number, fitted by least squares in which older forwards weigh less. Most of a small batch's time is fixed (the
weights are read once for all), so the slope tells how much batching saves. Prompts: the time of a forward beyond its decodes (beyond one
decode if it has none), per token, over the last few prefill chunks; the estimate follows the context's growth. (If the fixed part counted
as the prefill chunk's, small ones would look expensive and be made smaller still, down to one token: docs/log.md.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KEPT = 0.98
"""Factor on a forward's weight with each later forward of decodes: about the last fifty count."""
KEPT_OF_CHUNKS = 0.7
"""The same for prefill chunks: about the last three or four count."""

OUTLIER = 3.0
"""Limit of a measured time, in expected times of the forward: the rest is a stall of the machine."""
NUM_TRUSTED = 5.0
"""Forwards after which the expected time limits a measured one."""

PRIOR_SHARE = 0.5
"""Before batches of different sizes were seen: the share of a forward's time that grows with its decodes."""
PRIOR_WEIGHT = 0.25
"""Weight of the previous slope, as a variance of batch sizes: while all batches have one size, the slope stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Estimates from all forwards so far; `with_forward` adds one more."""

    weight: float = 0.0
    """Weighted number of forwards of decodes."""
    mean_decodes: float = 0.0
    ms: float = 0.0
    """Weighted means of the decodes in a forward, and of its milliseconds."""
    spread: float = 0.0
    shared: float = 0.0
    """Weighted variance of the number of decodes, and its covariance with the milliseconds."""
    slope: float | None = None
    """Milliseconds of one more decode."""
    most_decodes: int = 0
    """Most decodes that ever shared a forward."""
    chunk_tokens: float = 0.0
    chunk_ms: float = 0.0
    """Weighted sums over the last prefill chunks."""

    @property
    def token_ms(self) -> float | None:
        """Milliseconds that one more token of a prompt takes; None before any was seen."""
        return self.chunk_ms / self.chunk_tokens if self.chunk_tokens else None

    def decode_ms(self, num_decodes: int) -> float:
        """Milliseconds of a forward of so many decodes; 0 before any was seen."""
        return max(0.0, self.ms + (self.slope or 0.0) * (num_decodes - self.mean_decodes))

    def with_forward(self, num_decodes: int, num_tokens: int, ms: float) -> Costs:
        """The estimates after one more forward, of `num_decodes` decodes and `num_tokens` prompt tokens, which took `ms`."""
        if num_tokens:
            return self._with_chunk(num_decodes, num_tokens, ms)
        return self._with_decodes(num_decodes, ms) if num_decodes else self

    def _with_decodes(self, num_decodes: int, ms: float) -> Costs:
        if self.weight >= NUM_TRUSTED:
            ms = min(ms, OUTLIER * self.decode_ms(num_decodes))
        weight = KEPT * self.weight + 1
        share = 1 / weight
        off_decodes, off_ms = num_decodes - self.mean_decodes, ms - self.ms
        mean_decodes, mean_ms = self.mean_decodes + share * off_decodes, self.ms + share * off_ms
        spread = (1 - share) * (self.spread + share * off_decodes * off_decodes)
        shared = (1 - share) * (self.shared + share * off_decodes * off_ms)
        before = PRIOR_SHARE * mean_ms / mean_decodes if self.slope is None else self.slope
        slope = (shared + PRIOR_WEIGHT * before) / (spread + PRIOR_WEIGHT)
        return replace(
            self,
            weight=weight, mean_decodes=mean_decodes, ms=mean_ms, spread=spread, shared=shared,
            slope=min(max(slope, 0.0), mean_ms / mean_decodes),  # one more decode takes at least 0 ms, and at most as long as alone
            most_decodes=max(self.most_decodes, num_decodes),
        )  # fmt: skip

    def _with_chunk(self, num_decodes: int, num_tokens: int, ms: float) -> Costs:
        spent = max(ms - self.decode_ms(max(1, num_decodes)), 0.1 * ms)
        if self.token_ms is not None:
            spent = min(spent, 2 * OUTLIER * self.token_ms * num_tokens)
        return replace(
            self,
            chunk_tokens=KEPT_OF_CHUNKS * self.chunk_tokens + num_tokens,
            chunk_ms=KEPT_OF_CHUNKS * self.chunk_ms + spent,
        )
