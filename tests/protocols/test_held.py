"""Parts of a version at several stages are whole, or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocols.held import Held, whole_versions
from protocols.kept import Kept
from protocols.units import Blocks, Ends, Unit

UNITS: tuple[Unit, ...] = (Blocks(0, 1), Blocks(1, 2), Ends())


def version(number: int, history: int = 0) -> Kept:
    return Kept(version=number, chains={unit: bytes([number, history, place]) + bytes(29) for place, unit in enumerate(UNITS)})


def part(kept: Kept, *units: Unit) -> Held:
    return Held(version=kept.version, whole=kept.chain, chains={unit: kept.chains[unit] for unit in units})


def test_stages_have_a_version_together_if_each_unit_is_at_one_of_them() -> None:
    seven, nine = version(7), version(9)
    assert whole_versions([part(nine, *UNITS[:2]), part(seven, UNITS[0], Ends()), part(seven, UNITS[1], Ends())]) == [seven]
    assert whole_versions([part(nine, *UNITS), part(seven, *UNITS)]) == [seven, nine]
    assert whole_versions([part(nine, *UNITS[:2])]) == [] == whole_versions([])


def test_parts_of_two_histories_make_no_version() -> None:
    here, there = version(7), version(7, history=1)
    assert whole_versions([part(here, *UNITS[:2]), part(there, Ends())]) == []
    forged = Held(version=7, whole=here.chain, chains={Ends(): there.chains[Ends()]})
    assert whole_versions([part(here, *UNITS[:2]), forged]) == []


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 1), st.sets(st.sampled_from(UNITS))), max_size=8))
def test_exactly_the_versions_with_all_units_count(parts: list[tuple[int, int, set[Unit]]]) -> None:
    found = whole_versions(part(version(number, history), *units) for number, history, units in parts)
    together: dict[tuple[int, int], set[Unit]] = {}
    for number, history, units in parts:
        together.setdefault((number, history), set()).update(units)
    expected = [version(*key) for key, units in together.items() if units == set(UNITS)]
    assert found == sorted(expected, key=lambda one: (one.version, one.chain))
