"""Size of the next forward: prefill chunks, pipelined batches, batching delay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.device import forward_size
from node.device.costs import Costs


def costs(fixed_ms: float = 4.0, row_ms: float = 1.0, token_ms: float | None = 0.5) -> Costs:
    found = Costs()
    for rows in (1, 8) * 30:
        found = found.with_forward(rows, 0, fixed_ms + row_ms * rows)
    return found if token_ms is None else found.with_forward(0, 100, 100 * token_ms)


def test_a_prefill_chunk_beside_decodes_takes_less_than_one_of_their_steps() -> None:
    step_ms = costs().decode_ms(8)
    assert step_ms == pytest.approx(12.0, rel=0.02)
    assert 0.5 * step_ms < forward_size.chunk_ms(costs(), 8, 8, credit_ms=step_ms) < step_ms
    assert 0.5 * step_ms < forward_size.chunk_ms(costs(), 8, 0, credit_ms=0.0) < step_ms  # no decode waits: the time is free


def test_while_decodes_wait_prefill_chunks_take_no_more_than_they_did() -> None:
    assert forward_size.chunk_ms(costs(), 8, 3, credit_ms=0.5) == 0.0
    assert forward_size.chunk_ms(costs(), 8, 3, credit_ms=4.0) == pytest.approx(2.4)


def test_while_no_session_decodes_prefill_chunks_are_large_and_never_empty() -> None:
    assert forward_size.chunk_ms(costs(), 0, 0, 0.0) == forward_size.LONE_CHUNK_MS
    assert forward_size.chunk_tokens(costs(token_ms=0.5), forward_size.LONE_CHUNK_MS, is_alone=True) == 555
    assert (
        forward_size.chunk_tokens(costs(token_ms=1e6), forward_size.LONE_CHUNK_MS, is_alone=True)
        == forward_size.FIRST_CHUNK_TOKENS
    )
    assert forward_size.chunk_tokens(costs(token_ms=1e6), 1.0, is_alone=False) == 1
    assert forward_size.chunk_tokens(costs(token_ms=None), 1.0, is_alone=False) == forward_size.FIRST_CHUNK_TOKENS


@given(st.integers(1, 64), st.integers(1, 5), st.floats(0, 500), st.floats(0, 50), st.floats(0.01, 20))
def test_pipelined_batches_never_lengthen_a_round(
    num_decoding: int, num_hops: int, inter_arrival_ms: float, fixed_ms: float, row_ms: float
) -> None:
    known = costs(fixed_ms, row_ms)
    size = forward_size.pipelined_batch_size(known, num_decoding, num_hops, inter_arrival_ms)
    num_batches = forward_size.num_pipelined_batches(known, num_decoding, num_hops, inter_arrival_ms)
    one_ms = known.decode_ms(size)
    assert 1 <= size <= num_decoding and num_batches <= num_hops and num_batches * size >= num_decoding
    if num_batches > 1:
        assert max(num_batches * one_ms, one_ms + inter_arrival_ms) <= known.decode_ms(num_decoding) + inter_arrival_ms


def test_two_equal_hops_get_two_batches_and_one_hop_a_single_one() -> None:
    assert forward_size.pipelined_batch_size(costs(), 8, 2, inter_arrival_ms=12.0) == 4  # the other hop takes as long as we do
    assert forward_size.pipelined_batch_size(costs(), 8, 1, inter_arrival_ms=12.0) == 8
    assert (
        forward_size.pipelined_batch_size(costs(fixed_ms=12.0, row_ms=0.01), 8, 2, inter_arrival_ms=3.0) == 8
    )  # a step costs the same for 4: nothing is gained


def test_a_forward_waits_only_for_those_that_are_due_and_not_for_long() -> None:
    assert forward_size.gather_until(10.0, 10.0, [10.005], 0.01) == pytest.approx(10.01)
    assert forward_size.gather_until(10.011, 10.0, [10.02], 0.01) == 10.011
    assert forward_size.gather_until(10.0, 10.0, [10.5], 0.01) == 10.0  # due much later
    assert forward_size.gather_until(10.0, 10.0, [9.5], 0.01) == 10.0  # too late: it is not expected any more
    assert forward_size.gather_until(10.0, 10.0, [], 0.01) == 10.0


def test_many_sessions_of_one_client_do_not_delay_another_for_long() -> None:
    assert forward_size.fits_one_forward(costs(), 100, num_clients=1)
    assert not forward_size.fits_one_forward(costs(), 100, num_clients=2) and forward_size.fits_one_forward(
        costs(), 8, num_clients=2
    )
