"""Which ended session a prompt continues."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from swarm.thin import prefixes
from swarm.thin.prefixes import MIN_TOKENS, Prefixes

texts = st.lists(st.integers(0, 1), min_size=1, max_size=MIN_TOKENS + 8).map(lambda tail: [7] * (MIN_TOKENS - 4) + tail)


def common(first: list[int], second: list[int]) -> int:
    pairs = zip(first, second, strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def session(name: str) -> Any:
    return name


@given(st.lists(st.tuples(st.sampled_from("ab"), texts), max_size=8), texts)
def test_the_one_with_the_most_tokens_in_common_is_found(ended: list[tuple[str, list[int]]], prompt: list[int]) -> None:
    found = Prefixes(lambda: 0.0)
    for number, (owner, ids) in enumerate(ended):
        found.add(owner, ids, session(f"{owner}{number}"))
    best = max([min(common(ids, prompt), len(prompt) - 1) for owner, ids in ended if owner == "a"], default=0)
    prefix = found.longest("a", prompt)
    if best < MIN_TOKENS:
        assert prefix is None
        return
    assert prefix is not None and prefix.num_common == best
    name: Any = prefix.session
    ids = ended[int(name[1:])][1]
    assert name[0] == "a" and min(common(ids, prompt), len(prompt) - 1) == best


def test_a_session_takes_the_place_of_those_that_it_continues() -> None:
    found, first = Prefixes(lambda: 0.0), [1] * 100
    found.add("a", first, session("first"))
    found.add("b", first, session("of another"))
    found.add("a", [*first, 2], session("second"))
    assert len(found) == 2
    assert found.longest("a", first).session == session("second")  # type: ignore[union-attr]


def test_they_are_few_and_end() -> None:
    now_s = [0.0]
    found = Prefixes(lambda: now_s[0])
    for number in range(prefixes.MOST + 1):
        found.add("a", [number] * 100, session(str(number)))
    assert len(found) == prefixes.MOST and found.longest("a", [0] * 101) is None
    found.add("b", [5] * prefixes.MOST_TOKENS, session("large"))
    assert len(found) == 1 and found.longest("b", [5] * 101) is not None
    found.add("a", [1] * 100, session("1"))
    assert len(found) == 1 and found.longest("b", [5] * 101) is None
    found.add("a", [2] * 100, session("2"))
    now_s[0] = prefixes.KEEP_S - 1
    assert found.longest("a", [1] * 101) is not None  # used: it stays longer
    now_s[0] = prefixes.KEEP_S + 1
    assert found.longest("a", [2] * 101) is None and found.longest("a", [1] * 101) is not None
