"""What a version lacks as stages add and die; groups of replicas."""

from __future__ import annotations

from protocols.ids import PeerId
from protocols.parts_of_units import Part
from protocols.units import Blocks, Ends
from swarm.training.groups import grouped
from swarm.training.progress import Progress

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
FIRST, SECOND = Part(Blocks(0, 1)), Part(Blocks(1, 2))


def test_an_index_is_missing_until_every_part_has_it() -> None:
    progress = Progress(2, [FIRST, SECOND])
    progress.add(0, A, [FIRST])
    assert progress.missing() == [0, 1]
    progress.add(0, B, [SECOND])
    assert progress.missing() == [1]


def test_a_death_loses_what_only_that_stage_held_and_the_others_are_skipped_in_the_redo() -> None:
    progress = Progress(1, [FIRST, SECOND])
    progress.add(0, A, [FIRST])
    progress.add(0, B, [SECOND])
    progress.lose(A)
    assert progress.missing() == [0]
    assert progress.skipped(0, {FIRST: A, SECOND: C}) == (SECOND,), "b holds the second part, c must not add it"
    assert progress.skipped(0, {FIRST: A, SECOND: B}) == (), "b knows by itself that it holds the index"
    assert progress.holders_of(0) == {B}


def test_the_stages_ledgers_correct_the_receipts() -> None:
    progress = Progress(1, [FIRST])
    progress.add(0, A, [FIRST])
    progress.correct(FIRST, [0])
    assert progress.missing() == [0]


def test_the_parts_of_a_group_that_has_agreed_are_whole_until_its_members_are_lost() -> None:
    progress = Progress(2, [FIRST, SECOND])
    for index in range(2):
        progress.add(index, A, [FIRST, SECOND])
    progress.agree([FIRST])
    progress.lose(A)
    assert progress.missing() == [0, 1] and progress.skipped(0, {FIRST: B, SECOND: B}) == (FIRST,)
    progress.add(0, B, [SECOND])
    progress.add(1, B, [SECOND])
    assert progress.missing() == []
    progress.correct(FIRST, [1])
    assert progress.missing() == [0, 1] and progress.skipped(0, {FIRST: B, SECOND: B}) == ()


def test_units_with_the_same_hosts_are_one_group_and_every_unit_is_in_one() -> None:
    blocks = [Blocks(number, number + 1) for number in range(4)]
    hosts = {B: dict.fromkeys(blocks[1:], b""), A: dict.fromkeys((*blocks[:2], Ends()), b""), C: {Ends(): b""}}
    together = dict(grouped(hosts))
    assert together == {(A,): (blocks[0],), (A, B): (blocks[1],), (B,): (blocks[2], blocks[3]), (A, C): (Ends(),)}


def test_units_that_have_agreed_are_a_group_apart() -> None:
    """They had agreed with a member that has died: what they agreed on says nothing of the others."""
    first, second, third = (Blocks(number, number + 1) for number in range(3))
    hosts = {A: {first: b"one", second: b"", third: b"two"}, B: {first: b"", second: b"", third: b""}}
    assert grouped(hosts) == [((A, B), (first,)), ((A, B), (second,)), ((A, B), (third,))]
