"""Changes of logits on the wire: their bytes, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import BadRequestError
from protocols.logit_changes import MAX_CHANGES_BYTES, LogitChanges

VOCAB = 100
tokens = st.integers(0, VOCAB - 1)
Pairs = tuple[tuple[int, float], ...]
pairs = st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=9).map(lambda found: tuple(found.items()))


@given(st.floats(0.125, 64, width=32), st.sets(tokens, max_size=9), pairs, pairs)
def test_they_come_back_as_they_were(penalty: float, repeated: set[int], bias: Pairs, less: Pairs) -> None:
    changes = LogitChanges(penalty=penalty, repeated=tuple(repeated), bias=bias, less=less)
    assert LogitChanges.parse(changes.pack(), VOCAB) == changes and len(changes.pack()) == changes.num_bytes


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "16 to 262144 bytes, got 0"),
        (bytes(MAX_CHANGES_BYTES + 1), "bytes, got"),
        (LogitChanges(repeated=(1,)).pack()[:-1], "do not have 19 bytes"),
        (struct.pack("<fIII", 1.0, 1 << 31, 1 << 31, 1 << 31), "do not have 16 bytes"),
        (LogitChanges(repeated=(VOCAB,)).pack(), "tokens 0 to 99"),
        (LogitChanges(repeated=(-1,)).pack(), "tokens 0 to 99"),
        (LogitChanges(bias=((1, 0.5), (1, 0.5))).pack(), "each once"),
        (LogitChanges(less=((1, float("inf")),)).pack(), "are finite"),
        (LogitChanges(bias=((1, float("nan")),)).pack(), "are finite"),
        (LogitChanges(penalty=0.0).pack(), "penalty is 0.001 to 1000"),
        (LogitChanges(penalty=float("nan")).pack(), "penalty is 0.001 to 1000"),
    ],
)
def test_others_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        LogitChanges.parse(data, VOCAB)
