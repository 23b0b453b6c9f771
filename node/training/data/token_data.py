"""Tokens of a data set, as arrays.

`tokens.py` makes them and maps them into memory; `packing.py` cuts them into sequences.

Shapes: N tokens, D documents, V ids of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
"""Goes into every digest: raised if the same files would give other tokens or other sequences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSource:
    """One source: its documents, one after the other."""

    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    """[N]; little-endian, uint16 if all ids of the tokenizer fit."""

    ends: NDArray[np.int64]
    """[D], rising: document d is tokens[ends[d-1] : ends[d]]. None is empty."""

    targets: NDArray[np.uint8] | None
    """[N]: 1 = this token is a target (an assistant's answer). None = all are."""

    weight: Fraction | None
    """Its share of the sequences, relative to the other sources; None = as many as it has."""

    digest: str
    """SHA-256 over the bytes of the three arrays."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenData:
    """All sources of one data set."""

    sources: tuple[TokenSource, ...]
    pad_id: int
    """What fills a sequence up; never a target."""

    byte_lengths: NDArray[np.uint32]
    """[V]: UTF-8 bytes that each token stands for; 0 for special tokens."""

    @property
    def num_tokens(self) -> int:
        return sum(len(source.tokens) for source in self.sources)

    @property
    def num_documents(self) -> int:
        return sum(len(source.ends) for source in self.sources)

    @property
    def digest(self) -> str:
        """SHA-256 in hex over tokens, borders of documents, targets, weights and padding: equal on every machine with the same text,
        wherever its files are, and under any names. It belongs into the run's spec."""
        said = {
            "format": FORMAT,
            "pad_id": self.pad_id,
            "sources": [[source.digest, None if source.weight is None else str(source.weight)] for source in self.sources],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
