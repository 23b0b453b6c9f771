"""The last hop changes logits as its client would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from node.engines import ends
from protocols.logit_changes import LogitChanges
from swarm.thin.sampling import MAX_ASKED, NUM_LIKELY, Chooser, NotEnoughError, Position, TokenSampling

VOCAB = 3000
PROMPT = [7, 7, 2999, 40]
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "repetition_penalty": 0.6, "presence_penalty": -1.1},
    {"temperature": 1.3, "top_p": 0.8, "frequency_penalty": 0.7, "bias": ((3, 4.5), (7, -100.0))},
    {"temperature": 1.1, "min_p": 0.02, "presence_penalty": 0.3, "frequency_penalty": 0.1, "repetition_penalty": 1.1},
    {"temperature": 1.0, "top_k": MAX_ASKED, "bias": ((2, 9.0),)},
    {"temperature": 0.0, "presence_penalty": -2.0},
    {"temperature": 0.0, "bias": ((11, 3.5),), "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_same_tokens_are_picked_as_from_all_logits(settings: dict[str, Any], masked: bool) -> None:
    few, all_ = (Chooser(TokenSampling(seed=5, **settings)) for _ in range(2))
    rng = torch.Generator().manual_seed(1)
    mask = np.packbits(torch.rand(VOCAB, generator=rng).numpy() < 0.7, bitorder="little").tobytes() if masked else b""
    said, num_again = list(PROMPT), 0
    for _ in range(60):
        one = (torch.randn(VOCAB, generator=rng) * 3)[None]
        changes = few.changes(said, len(PROMPT), VOCAB)
        asked, temperature = few.asks(said, len(PROMPT), True), few.temperature_of(True)
        assert changes and asked == (settings.get("top_k") or (NUM_LIKELY if settings["temperature"] else 1))
        found = ends.changed(one, LogitChanges.parse(changes, VOCAB))
        plain = Position(one.numpy().tobytes())
        if not masked:  # to the last bit
            values, ids = all_._candidates(plain, said, len(PROMPT), b"")
            assert found.numpy()[0][ids].tobytes() == values.tobytes()
        found = ends.allowed(found, mask) if mask else found
        values, ids = ends.top(found, asked)
        total = float(ends.totals(found, temperature)) if temperature else None
        try:
            token = few.choose(Position(values.numpy().tobytes(), ids.numpy().tobytes(), total, True), said, len(PROMPT), mask)
        except NotEnoughError:
            num_again += 1
            token = few.choose(plain, said, len(PROMPT), mask)
        assert token == all_.choose(plain, said, len(PROMPT), mask)
        said.append(token)
    assert num_again < 60 and len(set(said)) > 3


def test_they_are_sent_only_if_they_save_something() -> None:
    def of(**settings: Any) -> bytes:
        return Chooser(TokenSampling(**{"temperature": 1.0, **settings})).changes(list(range(500)), 400, VOCAB)

    assert len(of(repetition_penalty=1.1)) == 16 + 4 * 500 and of(presence_penalty=1.0)
    bias = ((1, 1.0),)
    for settings in (
        {},
        {"top_k": 100, "bias": bias},
        {"suppressed": (3,), "bias": bias},
        {"top_k": 5, "repetition_penalty": 1.1},
    ):
        assert not of(**settings), "all are asked for, or few are enough"
    assert not Chooser(TokenSampling(temperature=1.0, repetition_penalty=1.1)).changes(list(range(1500)), 0, VOCAB), "too many"
