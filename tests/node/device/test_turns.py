"""The size of the next forward: pieces beside decodes, waves over several hops, and the wait for those that are due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device import turns
from node.device.costs import Costs


def costs(fixed_ms: float = 4.0, row_ms: float = 1.0, token_ms: float | None = 0.5) -> Costs:
    found = Costs()
    for rows in (1, 8) * 30:
        found = found.learn(rows, 0, fixed_ms + row_ms * rows)
    return found if token_ms is None else found.learn(0, 100, 100 * token_ms)


def test_a_piece_beside_decodes_takes_less_than_one_of_their_steps() -> None:
    step_ms = costs().decode_ms(8)
    assert step_ms == pytest.approx(12.0, rel=0.02)
    assert 0.5 * step_ms < turns.piece_ms(costs(), 8, 8, credit_ms=step_ms) < step_ms
    assert 0.5 * step_ms < turns.piece_ms(costs(), 8, 0, credit_ms=0.0) < step_ms  # the time while all are away is nobody's


def test_while_decodes_wait_pieces_take_no_more_than_they_did() -> None:
    assert turns.piece_ms(costs(), 8, 3, credit_ms=0.5) == 0.0
    assert turns.piece_ms(costs(), 8, 3, credit_ms=4.0) == pytest.approx(2.4)


def test_while_nobody_decodes_pieces_are_large_and_never_nothing() -> None:
    assert turns.piece_ms(costs(), 0, 0, 0.0) == turns.LONE_PIECE_MS
    assert turns.piece_tokens(costs(token_ms=0.5), turns.LONE_PIECE_MS, is_alone=True) == 555
    assert turns.piece_tokens(costs(token_ms=1e6), turns.LONE_PIECE_MS, is_alone=True) == turns.FIRST_PIECE_TOKENS
    assert turns.piece_tokens(costs(token_ms=1e6), 1.0, is_alone=False) == 1
    assert turns.piece_tokens(costs(token_ms=None), 1.0, is_alone=False) == turns.FIRST_PIECE_TOKENS


@given(st.integers(1, 64), st.integers(1, 5), st.floats(0, 500), st.floats(0, 50), st.floats(0.01, 20))
def test_waves_never_lengthen_a_round(num_decoding: int, num_hops: int, away_ms: float, fixed_ms: float, row_ms: float) -> None:
    known = costs(fixed_ms, row_ms)
    size = turns.wave_size(known, num_decoding, num_hops, away_ms)
    waves = turns.num_waves(known, num_decoding, num_hops, away_ms)
    one_ms = known.decode_ms(size)
    assert 1 <= size <= num_decoding and waves <= num_hops and waves * size >= num_decoding
    if waves > 1:
        assert max(waves * one_ms, one_ms + away_ms) <= known.decode_ms(num_decoding) + away_ms


def test_two_equal_hops_get_two_waves_and_one_hop_a_single_one() -> None:
    assert turns.wave_size(costs(), 8, 2, away_ms=12.0) == 4  # the other hop takes as long as we do
    assert turns.wave_size(costs(), 8, 1, away_ms=12.0) == 8
    assert (
        turns.wave_size(costs(fixed_ms=12.0, row_ms=0.01), 8, 2, away_ms=3.0) == 8
    )  # a step costs the same for 4: nothing is gained


def test_a_forward_waits_only_for_those_that_are_due_and_not_for_long() -> None:
    assert turns.gather_until(10.0, 10.0, [10.005], 0.01) == pytest.approx(10.01)
    assert turns.gather_until(10.011, 10.0, [10.02], 0.01) == 10.011
    assert turns.gather_until(10.0, 10.0, [10.5], 0.01) == 10.0  # far away
    assert turns.gather_until(10.0, 10.0, [9.5], 0.01) == 10.0  # long overdue: it will hardly come just now
    assert turns.gather_until(10.0, 10.0, [], 0.01) == 10.0


def test_one_client_s_crowd_does_not_make_another_wait_long_for_a_turn() -> None:
    assert turns.fits_a_turn(costs(), 100, num_clients=1)
    assert not turns.fits_a_turn(costs(), 100, num_clients=2) and turns.fits_a_turn(costs(), 8, num_clients=2)
