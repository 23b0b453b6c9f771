"""Tokens are sampled as by transformers, without torch.

Greedy is equal to the token; draws follow its distribution.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
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

from protocols.defaults import MAX_TOP
from protocols.errors import BadRequestError
from swarm.thin.sampling import NUM_LIKELY, Chooser, NotEnoughError, Position, TokenSampling
from swarm.thin.scoring import ScoringChooser

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
    asked = chooser.asks(BEFORE, 1)
    assert asked == {"repetition_penalty": 4, "suppressed": 3}.get(next(iter(settings), ""), 1)  # 3 tokens were said
    assert chooser.choose(top_of(LOGITS, asked), BEFORE) == int(theirs(settings).argmax())


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


@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 5},
        {"top_k": 12, "top_p": 0.7},
        {"top_k": 9, "min_p": 0.05},
        {"top_k": 6, "repetition_penalty": 1.8},
        {"top_k": 6, "presence_penalty": 1.5, "frequency_penalty": 0.7},
        {"top_k": 4, "suppressed": (int(LOGITS.argmax()), 7), "bias": ((int(LOGITS.argsort()[-2]), -3.0), (5, -100.0))},
    ],
)
def test_the_largest_logits_alone_draw_what_all_of_them_draw(settings: dict[str, Any]) -> None:
    said = [*BEFORE, *LOGITS.argsort()[-3:].tolist(), int(LOGITS.argmax())]
    sampling = TokenSampling(temperature=1.4, seed=8, **settings)
    few, all_ = Chooser(sampling), Chooser(sampling)
    asked = few.asks(said, len(BEFORE))
    assert settings["top_k"] <= asked < 20
    drawn = [few.choose(top_of(LOGITS, asked), said, len(BEFORE)) for _ in range(200)]
    assert drawn == [all_.choose(all_of(LOGITS), said, len(BEFORE)) for _ in range(200)] and len(set(drawn)) > 2


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1.0}, {"temperature": 2.5, "top_p": 0.7}, {"temperature": 0.8, "top_p": 0.999}, {"temperature": 1.1, "min_p": 0.1},
     {"temperature": 3.0, "min_p": 0.001}, {"temperature": 1.5, "top_p": 0.9, "min_p": 0.05}],
)  # fmt: skip
@pytest.mark.parametrize("masked", [False, True])
def test_a_draw_from_all_needs_the_largest_and_the_sum_of_all(settings: dict[str, Any], masked: bool) -> None:
    """And says so if they do not decide it: then, and only then, all logits are needed, for the same token."""
    logits, mask = LOGITS, b""
    if masked:
        allowed = torch.rand(60, generator=torch.Generator().manual_seed(2)) < 0.6
        mask = sum(1 << token for token in range(60) if allowed[token]).to_bytes(8, "little")
        logits = torch.where(allowed, LOGITS, torch.finfo(torch.float32).min)
    few, all_ = (Chooser(TokenSampling(seed=8, **settings)) for _ in range(2))
    assert few.temperature == settings["temperature"]
    largest = replace(top_of(logits, 12), total=float((logits.double() / few.temperature).logsumexp(-1)))
    num_again, found = 0, Counter[int]()
    for _ in range(300):
        try:
            token = few.choose(largest, BEFORE, mask=mask)
        except NotEnoughError:
            num_again += 1
            token = few.choose(all_of(LOGITS), BEFORE, mask=mask)
        assert token == all_.choose(all_of(LOGITS), BEFORE, mask=mask)
        found[token] += 1
    print(settings, num_again, len(found))
    is_cut = "top_p" in settings or "min_p" in settings
    assert len(found) > 1 and (num_again in (0, 300) if is_cut else 0 < num_again < 100), "where it is cut is known, or not"


def test_what_changes_single_logits_needs_them_all_or_changes_at_the_last_hop() -> None:
    for settings in ({"repetition_penalty": 1.1}, {"bias": ((3, -1.0),)}, {"suppressed": (4,)}):
        chooser = Chooser(TokenSampling(**{"temperature": 1.0, **settings}))
        assert not chooser.temperature and not chooser.asks(BEFORE), settings
        assert chooser.changes(BEFORE, 1, 6000) and chooser.asks(BEFORE, 1, True) == NUM_LIKELY


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_logits_decide_among_many_equal_ones_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.integers(-2, 3, 40), dtype=torch.float32)
    said = rng.integers(0, 40, 12).tolist()
    for settings in ({"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.5, "bias": ((3, -1.0),)}):
        chooser = Chooser(TokenSampling(**settings))
        asked = chooser.asks(said, 4)
        assert chooser.choose(top_of(logits, asked), said, 4) == chooser.choose(all_of(logits), said, 4), settings


def test_presence_frequency_and_bias_are_openais() -> None:
    """Source: platform.openai.com/docs/guides/text-generation, "frequency and presence penalties"; the prompt does not count."""
    answer = [9, 9, 40]
    expected = LOGITS.clone()
    for token, count in Counter(answer).items():
        expected[token] -= count * 0.4 + 0.9
    expected[7] += 2.5
    sampling = TokenSampling(temperature=1.0, presence_penalty=0.9, frequency_penalty=0.4, bias=((7, 2.5),), seed=2)
    chooser, draws = Chooser(sampling), 6_000
    assert not chooser.asks([*BEFORE, *answer], len(BEFORE))  # a positive bias may bring up any token
    counts = Counter(chooser.choose(all_of(LOGITS), [*BEFORE, *answer], len(BEFORE)) for _ in range(draws))
    for token, chance in enumerate(expected.double().softmax(-1).tolist()):
        assert abs(counts[token] / draws - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5 + 1e-9, token


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.4, "top_k": 5}, {"repetition_penalty": 1.8, "bias": ((5, -2.0),)}])
def test_a_mask_leaves_what_it_allows(settings: dict[str, Any]) -> None:
    allowed = set(np.random.default_rng(3).choice(60, 20, replace=False).tolist())
    mask = sum(1 << token for token in allowed).to_bytes(8, "little")
    few, all_ = (Chooser(TokenSampling(seed=8, **settings)) for _ in range(2))
    masked = torch.where(torch.tensor([token in allowed for token in range(60)]), LOGITS, torch.finfo(torch.float32).min)
    largest = top_of(masked, few.asks(BEFORE))
    drawn = [few.choose(largest, BEFORE, mask=mask) for _ in range(100)]
    assert drawn == [all_.choose(all_of(LOGITS), BEFORE, mask=mask) for _ in range(100)] and set(drawn) <= allowed


def test_a_mask_that_allows_nothing_is_refused() -> None:
    with pytest.raises(BadRequestError, match="no token may come next"):
        Chooser(TokenSampling()).choose(all_of(LOGITS), BEFORE, mask=bytes(8))
    with pytest.raises(BadRequestError, match="a node must upgrade"):  # it has not applied the mask
        Chooser(TokenSampling()).choose(top_of(LOGITS, 1), BEFORE, mask=(1 << int(LOGITS.argmin())).to_bytes(8, "little"))


def test_what_needs_all_logits_asks_for_all() -> None:
    few = {"temperature": 1.0, "top_k": 5}
    for settings in (
        {"temperature": 1.0, "top_k": MAX_TOP + 1},
        {"temperature": 1.0, "top_p": 0.5, "suppressed": (4,)},
        few | {"repetition_penalty": 0.9},
        few | {"presence_penalty": -0.1},
        few | {"frequency_penalty": -0.1},
        few | {"bias": ((3, 0.5),)},
    ):
        assert Chooser(TokenSampling(**settings)).asks([1, 2]) == 0, settings
    assert Chooser(TokenSampling(repetition_penalty=1.1)).asks(range(MAX_TOP)) == 0  # more than a step may ask for
    assert Chooser(TokenSampling(repetition_penalty=1.1)).asks(range(MAX_TOP - 1)) == MAX_TOP
    assert Chooser(TokenSampling(temperature=1.0, top_k=MAX_TOP)).asks([1, 2]) == MAX_TOP


def test_scores_are_the_log_probabilities_of_the_model() -> None:
    chooser = ScoringChooser(TokenSampling(repetition_penalty=0.7, suppressed=(int(LOGITS.argmax()),)), 4)
    expected = LOGITS.double().log_softmax(-1)
    token = chooser.choose(all_of(LOGITS), BEFORE)
    assert chooser.asks(BEFORE) == 0 and chooser.last is not None and chooser.last.token == token != int(LOGITS.argmax())
    assert chooser.last.logprob == pytest.approx(float(expected[token]), abs=1e-9)
    assert [one for one, _ in chooser.last.top] == expected.topk(4).indices.tolist()
    assert [value for _, value in chooser.last.top] == pytest.approx(expected.topk(4).values.tolist(), abs=1e-9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("nan")},
        {"bias": ((1, float("inf")),)},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        TokenSampling(**wrong)


@pytest.mark.parametrize("num_top", [0, 1, 4])
def test_scores_of_the_likeliest_token_need_the_largest_and_the_sum(num_top: int) -> None:
    few, all_ = ScoringChooser(TokenSampling(), num_top), ScoringChooser(TokenSampling(), num_top, is_masked=True)
    assert few.asks(BEFORE) == max(1, num_top) and few.temperature == 1.0 and few.own is None and all_.own == num_top
    largest = replace(top_of(LOGITS, few.asks(BEFORE)), total=float(LOGITS.double().logsumexp(-1)))
    assert few.choose(largest, BEFORE) == all_.choose(all_of(LOGITS), BEFORE)
    assert few.last is not None and all_.last is not None and few.last.token == all_.last.token
    assert few.last.logprob == pytest.approx(all_.last.logprob, abs=1e-9)
    assert [token for token, _ in few.last.top] == [token for token, _ in all_.last.top]


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"top_k": 5}, {"top_k": 9, "temperature": 0.6}], ids=str)
def test_scores_of_a_draw_as_the_model_gives_it_need_the_largest_and_the_sum(settings: dict[str, Any]) -> None:
    sampling = TokenSampling(**{"temperature": 1.0, "seed": 3, **settings})
    few, all_ = ScoringChooser(sampling, 4), ScoringChooser(sampling, 4, is_masked=True)
    assert few.asks(BEFORE) == settings.get("top_k", NUM_LIKELY) and few.temperature == 1.0 and few.own is None
    largest = replace(top_of(LOGITS, 40), total=float(LOGITS.double().logsumexp(-1)))
    for _ in range(100):
        try:
            token = few.choose(largest, BEFORE)
        except NotEnoughError:
            token = few.choose(all_of(LOGITS), BEFORE)
        assert token == all_.choose(all_of(LOGITS), BEFORE)
        assert few.last is not None and all_.last is not None
        assert few.last.logprob == pytest.approx(all_.last.logprob, abs=1e-6)
        assert [one for one, _ in few.last.top] == [one for one, _ in all_.last.top]
    for other in ({"temperature": 0.5}, {"temperature": 1.0, "presence_penalty": 1.0}, {"bias": ((3, -1.0),)}):
        assert ScoringChooser(TokenSampling(**other), 4).own == 4, "its own logits are wanted beside those that decide"
