"""A micro-batch: token ids, targets and positions of a few sequences.

Shapes: B sequences of T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_TARGET = -100
"""The label of a position without a target, as `ignore_index` of torch's cross entropy."""

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """What one pass through the pipeline computes. All arrays are int32 and of this object alone."""

    ids: Ids
    """[B, T], at least 0."""

    labels: Ids
    """[B, T], aligned: labels[b, t] is the token that position t has to predict; NO_TARGET = none."""

    positions: Ids | None
    """[B, T]: place of each token in its document, or since the beginning of the sequence; a 0 begins a document, and no token attends to
    one before it. None = 0 … T-1 in every sequence."""

    num_targets: int
    """Labels other than NO_TARGET; 0 if a chat's prompt fills all sequences."""

    num_bytes: int
    """UTF-8 bytes of text that the targets stand for: special tokens stand for none. The loss in nats over `num_bytes` ln 2 is the bits
    per byte."""
