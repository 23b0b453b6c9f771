"""What hops say of their time is bounded, and dropped if impossible."""

from __future__ import annotations

import pytest

from protocols.timings import MAX_TIMES_BYTES, HopTime, appended, unpacked


def entry(index: int, queue_ms: float = 1.0, compute_ms: float = 2.0, total_ms: float = 3.5) -> HopTime:
    return HopTime(index=index, queue_ms=queue_ms, compute_ms=compute_ms, total_ms=total_ms)


def test_entries_come_back_in_microseconds() -> None:
    times = appended(appended(b"", entry(0, 0.0004)), entry(1, 1.2344, 5.0, 7.0))
    first, second = unpacked(times, 2)
    assert (first.queue_ms, second.queue_ms, second.compute_ms, second.index) == (0.0, 1.234, 5.0, 1)
    assert second.check_ms == pytest.approx(0.766)


def test_times_that_nobody_asked_for_are_not_kept() -> None:
    assert appended(None, entry(0)) is None and unpacked(None, 2) == ()


def test_a_time_beyond_what_fits_is_the_largest_one() -> None:
    (found,) = unpacked(appended(b"", entry(0, -1.0, 1e12)), 1)
    assert (found.queue_ms, found.compute_ms) == (0.0, (2**32 - 1) / 1e3)


def test_no_more_entries_than_a_route_has_hops() -> None:
    times: bytes | None = b""
    for index in range(200):
        times = appended(times, entry(index % 128))
    assert times is not None and len(times) == MAX_TIMES_BYTES


@pytest.mark.parametrize("indices", [(1, 0), (0, 0), (0, 3)], ids=["another order", "twice", "beyond the route"])
def test_entries_that_no_route_gives_are_dropped(indices: tuple[int, ...]) -> None:
    times: bytes | None = b""
    for index in indices:
        times = appended(times, entry(index))
    assert unpacked(times, 2) == ()
