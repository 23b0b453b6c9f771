"""What is wrong with training data, as one line."""

from __future__ import annotations

from pathlib import Path

from protocols.errors import DataError


def bad(what: str | Path, got: str, expected: str, then: str) -> DataError:
    """The line: what, got, expected, next step."""
    return DataError(f"{what} {got}, expected {expected}: {then}")
