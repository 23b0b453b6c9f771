"""A record of a structured file: JSONL, CSV, Parquet, a saved dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A line of JSON, or a record of a table: its fields by name."""

    where: str
    """For errors: its number, or its line, and the file."""

    fields: Mapping[str, Any]
    done_bytes: int
    """Of the file, with this record."""
