"""What has changed between two looks, told safely."""

from __future__ import annotations

from dataclasses import replace

from node.watching.changes import Change, between
from node.watching.grid import Replicas, grid_of, level_of
from node.watching.look import MAX_WEIGHTS, Link, Look, links, seen
from protocols.ids import MAX_BLOCKS, ModelId, Span
from protocols.records import PeerRecord
from protocols.weights_id import Weights
from tests.node.dashboard.made_swarm import MODEL, made_record

FIRST, SECOND = made_record(1, Span(0, 3), 6, "first"), made_record(2, Span(3, 6), 6, "second")


def look(*records: PeerRecord, silent: tuple[PeerRecord, ...] = ()) -> Look:
    return seen(7.0, {"tiny": records}, {one.peer for one in silent}, {one.peer: 2.0 for one in records})


def told(before: Look, now: Look) -> list[tuple[str, str]]:
    return [(one.kind, one.text) for one in between(before, now)]


def test_who_comes_leaves_dies_and_returns_is_told_with_what_it_means() -> None:
    both, alone, dead = look(FIRST, SECOND), look(FIRST), look(FIRST, SECOND, silent=(SECOND,))
    who = f"second …{SECOND.peer[-6:]}"
    gap = ("gap", "no node serves blocks 3:6 of tiny")
    assert told(alone, both) == [("joined", f"{who} hosts blocks 3:6 of tiny"), ("complete", "every block of tiny is served")]
    assert told(both, alone) == [("left", f"{who}, which hosts blocks 3:6 of tiny"), gap]
    assert told(both, dead) == [("died", f"{who} does not answer any more; it hosts blocks 3:6 of tiny"), gap]
    assert told(dead, both)[0] == ("returned", f"{who} answers again; it hosts blocks 3:6 of tiny")
    assert told(dead, alone) == [], "its death was told"
    assert told(both, both) == []
    assert between(alone, both)[0] == Change(at_s=7.0, kind="joined", text=f"{who} hosts blocks 3:6 of tiny", peer=SECOND.peer)


def test_a_move_is_told_when_it_begins_and_when_it_is_done() -> None:
    old, new = SECOND.hosted, made_record(2, Span(0, 3), 6, "second").hosted
    moving = replace(SECOND, hosted=(*old, *(replace(one, state="joining") for one in new)))
    moved = replace(SECOND, hosted=new)
    who = f"second …{SECOND.peer[-6:]}"
    assert told(look(FIRST, SECOND), look(FIRST, moving)) == [("loads", f"{who} loads blocks 0:3 of tiny")]
    assert told(look(FIRST, moving), look(FIRST, moved)) == [
        ("moved", f"{who} serves blocks 0:3 of tiny, and no more 3:6"),
        ("gap", "no node serves blocks 3:6 of tiny"),
    ]


def test_a_node_that_is_paused_resumed_or_drained_by_its_operator_is_told_as_such() -> None:
    units = tuple(replace(one, state="draining") for one in SECOND.hosted)
    paused, leaving = replace(SECOND, hosted=units, paused=True), replace(SECOND, hosted=units, state="draining")
    who = f"second …{SECOND.peer[-6:]}"
    serving, held, gone = look(FIRST, SECOND), look(FIRST, paused), look(FIRST, leaving, silent=(leaving,))
    assert told(serving, held)[0] == ("paused", f"{who} takes no new sessions of tiny: its operator has paused it")
    assert [row.state for row in grid_of(held.models[0], held).rows] == ["serving", "paused"]
    assert told(held, serving)[0] == ("resumed", f"{who} takes new sessions of tiny again")
    assert [kind for kind, _ in told(look(FIRST, leaving), gone)] == ["left"], "it had said so: that is no death"
    assert told(gone, look(FIRST)) == [], "its leaving was told"
    dead = look(FIRST, paused, silent=(paused,))
    assert [kind for kind, _ in told(held, dead)] == ["died"], "a paused node that vanishes is dead"


def test_a_text_of_a_peer_is_one_line_without_control_characters() -> None:
    evil = replace(SECOND, name="\x1b[2J\n\u202e" + "x" * 50)
    (joined, _) = between(look(FIRST), look(FIRST, evil))
    assert joined.text.isprintable() and joined.text.startswith("\\x1b[2J \\u202exxx") and len(joined.text) <= 300
    assert all(row.label.isprintable() for row in grid_of(look(FIRST, evil).models[0], look(FIRST, evil)).rows)


def test_the_grid_has_every_node_with_its_load_and_the_gaps() -> None:
    busy = made_record(3, Span(3, 5), 6, "busy", queue=5, step_ms=2.5)
    full = made_record(4, Span(3, 5), 6, "full", free_tokens=10)
    now = look(FIRST, busy, full)
    grid = grid_of(now.models[0], now)
    assert [(row.label.split()[0], [bar.level for bar in row.bars], row.trip) for row in grid.rows] == [
        ("first", [0], "2.0 ms"),
        *sorted([("busy", [2], "2.0 ms"), ("full", [3], "2.0 ms")], key=lambda one: {"busy": busy, "full": full}[one[0]].peer),
    ]
    assert [(bar.start, bar.stop, bar.text) for bar in grid.gaps] == [(5, 6, "no node serves blocks 5:6")]
    assert grid.replicas == (Replicas(0, 3, 1), Replicas(3, 5, 2), Replicas(5, 6, 0)) and grid.num_hidden == 0
    texts = [row.bars[0].text for row in grid.rows if row.label.startswith("busy")]
    assert texts == ["blocks 3:5, serving, busy, 5 steps waiting, 2.5 ms a step, 100,000 free tokens"]
    assert [level_of(row) for row in now.models[0].peers if row.name == "first"] == [0]


def test_links_are_those_that_were_measured_between_live_peers() -> None:
    first = replace(FIRST, round_trips=((SECOND.peer, 31.0), ("12D3KooWsomebody", 1.0)))  # type: ignore[arg-type]
    peers = {FIRST.peer, SECOND.peer}
    assert links(look(first, SECOND), peers) == [
        Link(FIRST.peer, SECOND.peer, 31.0),
        *sorted((Link(None, peer, 2.0) for peer in peers), key=lambda link: link.stop),
    ]
    assert links(look(first, SECOND, silent=(SECOND,)), peers) == [Link(None, FIRST.peer, 2.0)]


def test_weights_that_peers_make_up_are_bounded_and_what_most_serve_stays() -> None:
    """Each look is taken in a gateway's event loop, and drawn for each visitor."""
    made_up = [
        replace(
            one,
            hosted=tuple(
                replace(one.hosted[0], weights=Weights(ModelId("tiny", f"{number:02x}{at:02x}" * 16))) for at in range(8)
            ),
        )
        for number in range(30)
        for one in (made_record(number + 3, Span(0, 1), MAX_BLOCKS, "sybil"),)
    ]
    now = look(*made_up, FIRST, SECOND)
    assert len(now.models) == MAX_WEIGHTS and (now.models[0].digest, now.models[0].missing) == (MODEL.digest, ())
    assert len(now.records) == 32, "the peers are known all the same"
    grid = grid_of(now.models[-1], now)
    assert grid.replicas == (Replicas(0, 1, 1), Replicas(1, MAX_BLOCKS, 0)), "a claim of many blocks takes no more to draw"
