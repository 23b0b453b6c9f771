"""Makes token data from lists of documents."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from node.training.data.token_data import TokenData, TokenSource

VOCABULARY = 50_000
PAD = VOCABULARY - 1


def source(documents: Sequence[Sequence[int]], targets: Sequence[int] | None = None, weight: float | None = None) -> TokenSource:
    """One source. targets: 1 for each token that is one."""
    tokens = np.array([token for document in documents for token in document], np.uint16)
    return TokenSource(
        tokens=tokens,
        ends=np.cumsum([len(document) for document in documents], dtype=np.int64),
        targets=None if targets is None else np.array(targets, np.uint8),
        weight=None if weight is None else Fraction(str(weight)),
        digest=tokens.tobytes().hex(),
    )


def data(*sources: TokenSource) -> TokenData:
    """A data set in which token n stands for n % 5 bytes."""
    return TokenData(sources=sources, pad_id=PAD, byte_lengths=np.arange(VOCABULARY, dtype=np.uint32) % 5)


def numbered(*sizes: int) -> list[list[int]]:
    """Documents of these sizes in which each token is another number."""
    ends = np.cumsum([0, *sizes])
    return [list(range(start, end)) for start, end in pairwise(ends.tolist())]
