"""What one forward of an engine may take beside keys and values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """A longer step takes several forwards, or attends in slices, so that its memory does not grow with its tokens times its past."""

    mask_bytes: int = 1 << 22
    """Packed: bytes of one boolean mask, queries times keys; four times as many if torch turns it into float32."""

    scores: int = 1 << 26
    """Packed: values of one tensor of scores, in attention without a fused kernel: 256 MB in float32, and a few such tensors at a time."""

    gathered: int = 1 << 14
    """Paged: keys and values that every block copies out of pages in one forward: sequences times tokens of the longest one. So one long
    sequence does not stretch many short ones."""

    pairs: int = 1 << 20
    """Paged and serial: attention scores of one head in one forward: sequences times new tokens times tokens of the longest."""
