"""How much of a claim of speed is believed. Pure.

Up to twice the median of what was measured.

A record costs nothing to make up, so a peer that claims to be a thousand times as fast is believed to be twice as fast as usual.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from typing import TypeVar

K = TypeVar("K")

BELIEVED = 2.0
"""A peer counts as at most this many times as fast as the median."""

CAUTION = 1.25
"""A peer that never computed for us counts as this many times as slow as the median of those that did, at least."""


def floor_ms(measured_ms: Collection[float]) -> float:
    """The least milliseconds that are believed; measured_ms: what was measured, without zeros. 0 = nothing was."""
    return statistics.median(measured_ms) / BELIEVED if measured_ms else 0.0


def believed_ms(claims_ms: Mapping[K, float], proven: Collection[K], unknown_ms: float) -> dict[K, float]:
    """Milliseconds for one block, by peer, as they are believed.

    claims_ms: what each announces; 0 = it has measured nothing, and counts as the median. proven: those that have computed for us;
    if there are some, the others count as slower than their median, whatever they claim. unknown_ms: used if no peer has measured.
    """
    measured = {key: ms for key, ms in claims_ms.items() if ms > 0}
    trusted = [ms for key, ms in measured.items() if key in proven]
    if not measured:
        return dict.fromkeys(claims_ms, unknown_ms)
    usual_ms = statistics.median(trusted or measured.values())
    least_ms = usual_ms * CAUTION if trusted else usual_ms / BELIEVED
    return {key: max(ms or usual_ms, usual_ms / BELIEVED if key in proven else least_ms) for key, ms in claims_ms.items()}
