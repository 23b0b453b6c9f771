"""Places and their queue: no caller keeps others out."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.callers.places import Place, Places, evicted, next_served
from node.gateway.http.refusal import RefusedError
from tests.virtual_time import virtual_time

CALLERS = st.sampled_from("abc")


@given(st.lists(CALLERS, min_size=1, max_size=12), st.dictionaries(CALLERS, st.integers(1, 5)), st.permutations("abc"))
def test_the_caller_with_the_fewest_places_is_next_with_its_oldest_request(
    waiting: list[str], taken: dict[str, int], order: list[str]
) -> None:
    index = next_served(waiting, taken, {caller: number for number, caller in enumerate(order, 1)})
    fewest = min(taken.get(caller, 0) for caller in waiting)
    assert waiting[index] == min((one for one in waiting if taken.get(one, 0) == fewest), key=order.index)
    assert index == waiting.index(waiting[index])


@given(st.lists(CALLERS, min_size=3, max_size=3, unique=True), st.integers(1, 3))
def test_a_caller_that_always_asks_gets_its_part_of_the_places(callers: list[str], most: int) -> None:
    """One floods, the others have one request more than there are places; each request that ends is followed by another one."""

    @virtual_time
    async def run() -> None:
        places, counts, open_ones = Places(most, 100, 1e6), Counter[str](), list[tuple[Place, ExitStack]]()

        def ask(caller: str) -> None:
            stack = ExitStack()
            open_ones.append((stack.enter_context(places.place(caller)), stack))

        for caller in [callers[0]] * 9 + callers[1:] * (most + 1):
            ask(caller)
        running = list[tuple[Place, ExitStack]]()
        for _ in range(30):
            running += [one for one in open_ones if one[0].is_taken and one not in running]
            place, stack = running.pop(0)  # all take equally long
            open_ones.remove((place, stack))
            counts[place.caller] += 1
            stack.close()
            ask(place.caller)
        assert min(counts[caller] for caller in callers) >= 30 // 3 - most, counts
        for _, stack in open_ones:
            stack.close()

    run()


@given(st.lists(CALLERS, max_size=12), CALLERS)
def test_only_a_caller_with_more_than_the_newcomer_loses_a_request(waiting: list[str], newcomer: str) -> None:
    counts, out = Counter(waiting), evicted(waiting, newcomer)
    if out is None:
        assert max(counts.values(), default=0) <= counts[newcomer] + 1
    else:
        assert counts[waiting[out]] == max(counts.values()) >= counts[newcomer] + 2
        assert waiting[out] not in waiting[out + 1 :], "its older requests stay"


def names(places: list[Place]) -> str:
    return "".join(place.caller for place in places if place.is_taken)


@virtual_time
async def test_places_go_round_between_callers_whoever_asked_more() -> None:
    places = Places(2, 100, 10.0)
    with ExitStack() as all_of_them:
        held = [ExitStack() for _ in range(8)]
        for one in held:
            all_of_them.enter_context(one)
        each = [one.enter_context(places.place(caller)) for one, caller in zip(held, "aaaaaabc", strict=True)]
        assert names(each) == "aa" and (places.num_taken, places.num_waiting) == (2, 6)
        held[0].close()
        assert each[6].is_taken, "b has none, so it comes before a's third"
        held[1].close()
        assert each[7].is_taken, "c has had none yet, and a has"
        held[6].close()
        assert each[2].is_taken and not each[3].is_taken
        assert (places.num_taken, places.num_waiting) == (2, 3)
    assert (places.num_taken, places.num_waiting) == (0, 0)


@virtual_time
async def test_a_request_waits_so_long_and_no_longer() -> None:
    places, loop = Places(1, 100, 10.0), asyncio.get_running_loop()
    held = ExitStack()
    assert held.enter_context(places.place("a")).is_taken
    with places.place("b") as late:
        with pytest.raises(RefusedError, match="within 10 s") as refused:
            await late.granted()
        assert loop.time() == 10.0
        assert (refused.value.refusal.status, refused.value.refusal.retry_after_s) == (429, 1)
    with places.place("c") as second:
        loop.call_later(3.0, held.close)
        await second.granted()
        assert loop.time() == 13.0 and places.num_taken == 1
    assert places.num_taken == 0


@virtual_time
async def test_who_leaves_the_queue_gets_no_place() -> None:
    places = Places(1, 100, 10.0)
    held, gone = ExitStack(), ExitStack()
    held.enter_context(places.place("a"))
    waiting = asyncio.create_task(gone.enter_context(places.place("b")).granted())
    await asyncio.sleep(1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gone.close()
    assert (places.num_taken, places.num_waiting) == (1, 0)
    held.close()
    with places.place("c") as next_one:
        assert next_one.is_taken


@virtual_time
async def test_who_fills_the_queue_keeps_no_other_out() -> None:
    places = Places(1, 3, 10.0)
    with ExitStack() as held:
        flood = [held.enter_context(places.place("a")) for _ in range(4)]
        with pytest.raises(RefusedError, match="as many as may"), places.place("a"):
            pass
        newcomer = held.enter_context(places.place("b"))
        assert places.num_waiting == 3 and not newcomer.outcome.done()
        with pytest.raises(RefusedError, match="fewer requests"):
            await flood[3].granted()
        assert [place.outcome.done() for place in flood[:3]] == [True, False, False]
    assert (places.num_taken, places.num_waiting) == (0, 0)


@virtual_time
async def test_without_a_queue_a_request_is_refused_at_once() -> None:
    places = Places(1, 0, 10.0)
    with places.place("a"):
        for caller in "ab":
            with pytest.raises(RefusedError), places.place(caller):
                pass


@given(st.lists(st.tuples(CALLERS, st.booleans()), max_size=60), st.integers(1, 3), st.integers(0, 4))
def test_places_are_never_lost_nor_given_twice(steps: list[tuple[str, bool]], most: int, most_waiting: int) -> None:
    @virtual_time
    async def run() -> None:
        places, held = Places(most, most_waiting, 10.0), list[tuple[Place, ExitStack]]()
        for caller, comes in steps:
            if comes:
                stack = ExitStack()
                try:
                    held.append((stack.enter_context(places.place(caller)), stack))
                except RefusedError:
                    assert places.num_waiting >= most_waiting
            elif held:
                held.pop(len(caller) * 7 % len(held))[1].close()
            taken = sum(place.is_taken for place, _ in held)
            waiting = sum(not place.outcome.done() for place, _ in held)
            assert places.num_taken == taken <= most and places.num_waiting == waiting <= most_waiting
            assert not waiting or taken == most, "a place is free, and a request waits"
        for _, stack in held:
            stack.close()
        assert (places.num_taken, places.num_waiting) == (0, 0)

    run()
