"""Which stage copies which unit, for any swarm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.units import Blocks, Ends, Unit
from swarm.training.buddies import buddies

UNITS: tuple[Unit, ...] = (*(Blocks(number, number + 1) for number in range(4)), Ends())
SIZES = {unit: 10 for unit in UNITS} | {Ends(): 25}


def test_two_halves_copy_each_other_and_what_both_train_needs_no_copy() -> None:
    trained = {"a": (*UNITS[:2], Ends()), "b": (*UNITS[2:4], Ends())}
    assert buddies(trained, SIZES, ("a", "b")) == {UNITS[0]: "b", UNITS[1]: "b", UNITS[2]: "a", UNITS[3]: "a"}


def test_a_stage_copies_as_much_as_it_trains_at_most_and_units_without_a_replica_come_first() -> None:
    trained = {"a": UNITS[:1], "b": UNITS[1:], "c": UNITS[2:]}
    assert set(buddies(trained, SIZES, ("a",)).items()) == {(UNITS[1], "a")}


stages = st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from(UNITS), min_size=1), max_size=6)


@given(stages, st.sets(st.sampled_from("abcdef")), st.randoms(use_true_random=False))
def test_copies_are_where_they_help_and_none_is_left_out_that_has_a_place(
    trained: dict[str, set[Unit]], with_memory: set[str], rng: st.DataObject
) -> None:
    found = buddies(trained, SIZES, with_memory)
    shuffled = list(trained.items())
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert buddies(dict(shuffled), SIZES, with_memory) == found, "it depends on the order in which stages are known"
    free = {peer: sum(SIZES[unit] for unit in units) for peer, units in trained.items() if peer in with_memory}
    for unit, peer in found.items():
        assert unit not in trained[peer]
        free[peer] -= SIZES[unit]
    assert all(left >= 0 for left in free.values())
    for unit in SIZES.keys() - found.keys():
        assert not any(unit not in trained[peer] and left >= SIZES[unit] for peer, left in free.items())
