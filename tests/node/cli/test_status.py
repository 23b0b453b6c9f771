"""`swarm status`: gaps, groups by weights, and JSON that scripts can read."""

from __future__ import annotations

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from node.cli.status import _table, gaps, summarize
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord, ServedSpan


def record(
    number: int, span: Span, digest: str = "a" * 64, state: str = "serving", ends: bool = False, dtype: str = "float32"
) -> PeerRecord:
    served = ServedSpan(model=ModelId("tiny", digest), span=span, num_blocks=6, ends=ends, dtype=dtype)
    return PeerRecord(
        peer=PeerId("12D3KooW" + str(number) * 44), name=f"n{number}", state=state, spans=(served,), addresses=("127.0.0.1:1",)
    )


def test_blocks_that_only_a_joining_or_leaving_node_has_are_missing() -> None:
    records = [record(1, Span(0, 3)), record(2, Span(3, 5), state="joining"), record(3, Span(5, 6), state="draining")]
    (rows,) = summarize(records, "tiny")
    assert (rows.missing, rows.is_complete, rows.least_replicas) == (("3:6",), False, 0)
    assert [(row.name, row.start, row.stop, row.state) for row in rows.peers] == [
        ("n1", 0, 3, "serving"),
        ("n2", 3, 5, "joining"),
        ("n3", 5, 6, "draining"),
    ]


def test_who_does_not_answer_is_shown_as_silent_and_serves_nothing() -> None:
    killed = record(2, Span(3, 6))
    (rows,) = summarize([record(1, Span(0, 6)), killed], "tiny", {killed.peer})
    assert [row.state for row in rows.peers] == ["serving", "silent"] and rows.replicas == (1,) * 6
    (rows,) = summarize([record(1, Span(0, 3)), killed], "tiny", {killed.peer})
    assert rows.missing == ("3:6",)


def test_other_weights_of_the_same_name_are_another_model() -> None:
    groups = summarize([record(1, Span(0, 6)), record(2, Span(0, 3), digest="b" * 64)], "tiny")
    assert [(rows.digest[0], rows.is_complete) for rows in groups] == [("a", True), ("b", False)]
    assert summarize([record(1, Span(0, 6))], "other") == []
    json.dumps([asdict(rows) for rows in groups])


def test_thin_clients_can_ask_where_the_ends_are_at_both_ends_of_one_route() -> None:
    def is_possible(*records: PeerRecord) -> bool:
        (rows,) = summarize(records, "tiny")
        assert [row.ends for row in rows.peers] == [one.spans[0].ends for one in records]
        return rows.is_thin_possible

    first, middle, last = record(1, Span(0, 2), ends=True), record(2, Span(2, 4)), record(3, Span(4, 6), ends=True)
    assert is_possible(first, middle, last) and is_possible(record(1, Span(0, 6), ends=True))
    assert not is_possible(first, middle, record(3, Span(4, 6)))
    assert not is_possible(first, last)
    assert not is_possible(first, record(2, Span(3, 6), ends=True))
    assert not is_possible(first, middle, record(3, Span(4, 6), ends=True, state="joining"))
    assert not is_possible(first, middle, record(3, Span(4, 6), ends=True, dtype="bfloat16"))


def test_a_name_cannot_style_the_table() -> None:
    from io import StringIO

    from rich.console import Console

    served = ServedSpan(model=ModelId("[red]tiny", "a" * 64), span=Span(0, 6), num_blocks=6, dtype="float32")
    stranger = PeerRecord(peer=PeerId("12D3KooW" + "1" * 44), name="[bold]me[/]", spans=(served,))
    (rows,) = summarize([stranger], "[red]tiny")
    Console(file=(out := StringIO()), width=200).print(_table(rows))
    assert "[bold]me[/]" in out.getvalue() and "[red]tiny@aaaaaaaaaaaa" in out.getvalue()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_gaps_are_exactly_the_blocks_without_a_replica(replicas: list[int]) -> None:
    missing = [block for text in gaps(replicas) for block in range(*map(int, text.split(":")))]
    assert missing == [block for block, count in enumerate(replicas) if count == 0]
