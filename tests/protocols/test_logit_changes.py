"""Changes of logits on the wire: their bytes, and what is refused."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.engines.ends import changed
from protocols.errors import BadRequestError
from protocols.logit_changes import MAX_CHANGES_BYTES, LogitChanges
from swarm.thin.sampling import Chooser, TokenSampling

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
        (LogitChanges(bias=((1, -3e38),)).pack(), "1e\\+30 at most"),
        (LogitChanges(penalty=0.0).pack(), "penalty is 0.001 to 1000"),
        (LogitChanges(penalty=float("nan")).pack(), "penalty is 0.001 to 1000"),
    ],
)
def test_others_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadRequestError, match=why):
        LogitChanges.parse(data, VOCAB)


def test_what_would_make_a_logit_infinite_does_not_travel() -> None:
    """A node that computed infinity would say of itself that it is damaged, and leave the route."""
    for value in (3e38, 1e300):  # the second is none of float32
        sampling = TokenSampling(temperature=0.5, bias=((1, value),))
        assert Chooser(sampling).changes([1, 2, 3], 3, VOCAB) == b""
    assert Chooser(TokenSampling(temperature=0.5, bias=((1, 1e9),))).changes([1, 2, 3], 3, VOCAB)
    most = LogitChanges(penalty=1e-3, repeated=(1,), bias=((1, 2.0**100),), less=((1, -(2.0**100)),))
    (found,) = changed(torch.full((1, VOCAB), 1e5), LogitChanges.parse(most.pack(), VOCAB))
    assert bool(found.isfinite().all())
