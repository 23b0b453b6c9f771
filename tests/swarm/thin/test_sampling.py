"""Tokens are sampled as by transformers, without torch.

Greedy is equal to the token; draws follow its distribution.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from protocols.errors import BadRequestError
from swarm.thin.sampling import MAX_ASKED, Chooser, Position, TokenSampling

BEFORE = [3, 9, 9, 40]
LOGITS = torch.randn(60, generator=torch.Generator().manual_seed(3)) * 3


def all_of(logits: torch.Tensor) -> Position:
    return Position(logits.float().numpy().tobytes())


def top_of(logits: torch.Tensor, count: int) -> Position:
    order = np.argsort(-logits.numpy(), kind="stable")[:count]
    return Position(logits.numpy()[order].tobytes(), order.astype("<i4").tobytes())


def theirs(settings: dict[str, Any]) -> torch.Tensor:
    """transformers' scores after its processors, in its order."""
    steps = LogitsProcessorList()
    if "repetition_penalty" in settings:
        steps.append(RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "suppressed" in settings:
        steps.append(SuppressTokensLogitsProcessor(list(settings["suppressed"])))
    if settings.get("temperature", 0) not in (0, 1):
        steps.append(TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        steps.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        steps.append(TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        steps.append(MinPLogitsWarper(settings["min_p"]))
    return torch.as_tensor(steps(torch.tensor([BEFORE]), LOGITS[None].clone()))[0]


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.7}, {"suppressed": (int(LOGITS.argmax()), 7)}])
def test_greedy_is_transformers(settings: dict[str, Any]) -> None:
    chooser = Chooser(TokenSampling(**settings))
    assert chooser.choose(all_of(LOGITS), BEFORE) == int(theirs(settings).argmax())
    if not settings:
        assert chooser.sampling.asks == 1 and chooser.choose(top_of(LOGITS, 1), BEFORE) == int(LOGITS.argmax())
    else:
        assert chooser.sampling.asks == 0


def test_of_equal_logits_the_lowest_id_is_picked() -> None:
    equal = torch.zeros(60)
    assert Chooser(TokenSampling()).choose(all_of(equal), []) == Chooser(TokenSampling()).choose(top_of(equal, 1), []) == 0
    assert {Chooser(TokenSampling(temperature=1.0, top_k=3, seed=seed)).choose(all_of(equal), []) for seed in range(40)} == {
        0,
        1,
        2,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 8},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.6},
        {"temperature": 1.1, "min_p": 0.1},
        {"temperature": 0.8, "top_k": 30, "top_p": 0.95, "repetition_penalty": 1.5},
        {"temperature": 1.0, "top_p": 0.0001},
    ],
)
def test_draws_follow_transformers_distribution(settings: dict[str, Any]) -> None:
    chances = theirs(settings).double().softmax(-1)
    chooser, draws = Chooser(TokenSampling(**settings, seed=1)), 6_000
    counts = Counter(chooser.choose(all_of(LOGITS), BEFORE) for _ in range(draws))
    assert all(chances[token] > 0 for token in counts)  # nothing that it excludes
    for token, chance in enumerate(chances.tolist()):
        assert abs(counts[token] / draws - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9, token


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_k": 12, "top_p": 0.7}, {"top_k": 9, "min_p": 0.05}])
def test_the_largest_logits_alone_draw_what_all_of_them_draw(settings: dict[str, Any]) -> None:
    sampling = TokenSampling(temperature=1.4, seed=8, **settings)
    assert sampling.asks == settings["top_k"]
    few, all_ = Chooser(sampling), Chooser(sampling)
    drawn = [few.choose(top_of(LOGITS, sampling.asks), BEFORE) for _ in range(200)]
    assert drawn == [all_.choose(all_of(LOGITS), BEFORE) for _ in range(200)] and len(set(drawn)) > 2


def test_what_needs_all_logits_asks_for_all() -> None:
    assert TokenSampling(temperature=1.0).asks == TokenSampling(temperature=1.0, top_p=0.5).asks == 0
    assert TokenSampling(temperature=1.0, top_k=MAX_ASKED + 1).asks == 0
    assert TokenSampling(temperature=1.0, top_k=5, repetition_penalty=1.1).asks == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1}, {"repetition_penalty": 0.0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        TokenSampling(**wrong)
