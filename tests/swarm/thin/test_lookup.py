"""Guesses from the text itself are found, bounded, and save steps.

The matcher is compared with a plain search.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.thin.generation import Limits, TokenSequence, generate
from swarm.thin.lookup import Lookup, following, run_length
from swarm.thin.sampling import Chooser, TokenSampling
from tests.swarm.thin.test_generation import Hops

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=24)


def plainly(ids: Sequence[int], most: int, longest: int) -> list[int]:
    for size in range(min(longest, len(ids) - 1), 0, -1):
        for at in range(len(ids) - size - 1, -1, -1):
            if list(ids[at : at + size]) == list(ids[-size:]):
                text = list(ids)
                for index in range(most):
                    text.append(text[at + size + index])
                return text[len(ids) :]
    return []


@given(TEXTS, st.integers(1, 9), st.integers(1, 4))
def test_the_matcher_finds_what_a_plain_search_finds(ids: list[int], most: int, longest: int) -> None:
    assert following(ids, most, longest) == plainly(ids, most, longest)


def test_the_longer_match_and_the_later_place_win() -> None:
    assert following([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 1) == [9]  # three tokens match once, two match later as well
    assert following([2, 3, 9, 2, 3, 8, 2, 3], 2) == [8, 2]
    assert following([1, 2, 3], 4) == [] and following([7], 4) == [] and following([], 4) == []


def test_a_rhythm_is_followed_beyond_the_end_of_the_text() -> None:
    assert following([5, 6, 7, 5, 6], 7) == [7, 5, 6, 7, 5, 6, 7]
    assert following([4, 4], 3) == [4, 4, 4]


def test_bytes_that_match_between_two_tokens_are_no_match() -> None:
    shifted = [0x01000000, 0x00000002, 0x00020100, 1]  # little-endian: ... 01 | 02 00 00 00
    assert following(shifted, 2) == plainly(shifted, 2, 3)
    assert following([256, 1, 65536, 256], 1) == [1]
    assert following([1 << 24, 0, 1], 2) == []  # 01 00 00 00 stands across the first two


def test_runs_grow_with_what_was_right_and_shrink_with_what_was_wrong() -> None:
    assert (
        run_length([(8, 8)] * 16, 32) > run_length([], 32) > run_length([(8, 2)] * 16, 32) >= run_length([(8, 0)] * 16, 32) == 1
    )
    assert run_length([(8, 8)] * 16, 4) == 4
    assert run_length([(8, 0)] * 20 + [(8, 8)] * 16, 32) == run_length([(8, 8)] * 16, 32)  # the old is forgotten
    assert run_length([(1, 1)] * 16, 32, token_cost=1.0) == 1  # where compute is as dear as a trip, long runs do not pay


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda run: (run[0], min(run)))), st.integers(1, 64))
def test_a_run_is_never_empty_nor_longer_than_asked(runs: list[tuple[int, int]], most: int) -> None:
    assert 1 <= run_length(runs, most) <= most


def steps_of(text: Sequence[int], prompt: int, proposer: Lookup) -> int:
    """Steps in which a model that says `text` says it, the prompt's own included."""
    said, steps = list(text[:prompt]), 0
    while len(said) < len(text):
        guesses = proposer(said)
        steps += 1
        for guess in [*guesses, None]:
            if len(said) == len(text):
                break
            said.append(text[len(said)])
            if guess != said[-1]:
                break
    return steps


def test_a_repetitive_text_takes_a_fraction_of_the_steps_and_a_new_one_no_more_than_its_tokens() -> None:
    repetitive = [*range(10, 20)] * 8
    proposer = Lookup(16)
    assert steps_of(repetitive, 15, proposer) < 65 / 5
    assert all(right <= guessed for guessed, right in proposer.runs) and proposer.runs
    assert steps_of(list(range(60)), 10, Lookup(16)) == 50


@pytest.mark.parametrize(
    "sampling", [TokenSampling(), TokenSampling(temperature=0.8, top_k=5, seed=3)], ids=["greedy", "sampled"]
)
async def test_an_answer_that_was_guessed_ahead_is_the_answer(sampling: TokenSampling) -> None:
    """Greedy asks for one logit a position; a seed draws once for each token, guessed or not."""
    prompt, limits = [4, 9, 4, 9, 4], Limits(max_new_tokens=60)
    plain, quick, proposer = Hops(), Hops(), Lookup(8)
    expected = [token async for token in generate(TokenSequence(plain), prompt, Chooser(sampling), limits)]
    assert [token async for token in generate(TokenSequence(quick), prompt, Chooser(sampling), limits, proposer)] == expected
    assert any(right for _, right in proposer.runs) and any(right < guessed for guessed, right in proposer.runs)
    assert len(quick.steps) < len(plain.steps) == 60
    assert quick.tokens == plain.tokens[: len(quick.tokens)]  # what is held is what was said
    if sampling == TokenSampling():
        assert {result for _, _, result in quick.steps} == {"top"}
