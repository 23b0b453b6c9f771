"""`swarm status`: gaps, groups by weights, and JSON that scripts can read."""

from __future__ import annotations

import json
import shlex
import socket
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.watch import status, status_view
from node.cli.watch.status import SILENT, UNASKED
from node.watching.model_rows import summarize
from protocols.identity import from_seed
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from swarm.asking import AT_ONCE
from swarm.meeting.bootstrap import FindConfig
from swarm.meeting.entering import Entered
from swarm.peer.config import PeerConfig
from swarm.peer.peer import Peer
from swarm.placement.choose import gaps_of
from swarm.suggestion import NodeCommand
from swarm.weights import remembered
from swarm.weights.remembered import NameMemory
from tests.hosting import hosted


def record(
    number: int,
    span: Span,
    digest: str = "a" * 64,
    state: str = "serving",
    ends: bool = False,
    dtype: str = "float32",
    **load: float,
) -> PeerRecord:
    served = hosted(ModelId("tiny", digest), span, 6, ends=ends, dtype=dtype, **load)
    return PeerRecord(
        peer=PeerId("12D3KooW" + str(number) * 44), name=f"n{number}", state=state, hosted=served, addresses=("127.0.0.1:1",)
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
    (rows,) = summarize([record(1, Span(0, 6)), killed], "tiny", {killed.peer: "silent"})
    assert [row.state for row in rows.peers] == ["serving", "silent"] and rows.replicas == (1,) * 6
    (rows,) = summarize([record(1, Span(0, 3)), killed], "tiny", {killed.peer: "silent"})
    assert rows.missing == ("3:6",)


def test_other_weights_of_the_same_name_are_another_model() -> None:
    groups = summarize([record(1, Span(0, 6)), record(2, Span(0, 3), digest="b" * 64)], "tiny")
    assert [(rows.digest[0], rows.is_complete) for rows in groups] == [("a", True), ("b", False)]
    assert summarize([record(1, Span(0, 6))], "other") == []
    json.dumps([asdict(rows) for rows in groups])


def test_the_weights_that_the_name_stands_for_come_first_and_the_others_are_said_to_be_others() -> None:
    usurper = record(3, Span(0, 6), digest="0" * 64)
    records = [record(1, Span(0, 6)), record(2, Span(0, 6)), usurper]
    groups = summarize(records, "tiny")
    assert [(rows.digest[0], rows.is_meant) for rows in groups] == [("a", True), ("0", False)]
    assert status_view.verdict(groups[1], NodeCommand()) == ["other weights by this name; tiny@000000000000 chooses them"]
    assert [rows.digest[0] for rows in summarize(records, "tiny", before="0" * 64)] == ["0", "a"]
    silent = {one.peer: "silent" for one in records[:2]}
    assert [rows.is_meant for rows in summarize(records, "tiny", silent, before="a" * 64)] == [True, False]


def test_thin_clients_can_ask_where_the_ends_are_at_both_ends_of_one_route() -> None:
    def is_possible(*records: PeerRecord) -> bool:
        (rows,) = summarize(records, "tiny")
        assert [row.ends for row in rows.peers] == [len(one.hosted) == 2 for one in records]
        assert [row.ends for row in rows.peers] == ["decoder/ends" in row.units for row in rows.peers]
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

    served = hosted(ModelId("[red]tiny", "a" * 64), Span(0, 6), 6)
    outsider = PeerRecord(peer=PeerId("12D3KooW" + "1" * 44), name="[bold]me[/]", hosted=served)
    (rows,) = summarize([outsider], "[red]tiny")
    Console(file=(out := StringIO()), width=200).print(status_view.table(rows))
    assert "[bold]me[/]" in out.getvalue() and "[red]tiny@aaaaaaaaaaaa" in out.getvalue()


def shown(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *records: PeerRecord) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    hosting = NodeCommand(swarm="attic", peer="/ip4/203.0.113.5/tcp/4000/p2p/12D3KooW" + "1" * 44)
    status_view.show(summarize(records, "tiny"), hosting)
    return capsys.readouterr().out.splitlines()


def test_forty_columns_are_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole words, one fact after the other; only the command that is to be copied is longer, and is not cut into lines."""
    loaded = record(1, Span(0, 3), ends=True, queue=2, free_tokens=13_929_695, step_ms=1.42)
    lines = shown(40, monkeypatch, capsys, loaded, record(2, Span(4, 6)))
    *facts, command = lines
    assert max(map(len, facts)) <= 40, facts
    assert facts == [
        "tiny@aaaaaaaaaaaa, 6 blocks",
        "0:3 + ends  n1 …111111",
        "  serving, float32, 1.4 ms",
        "  queue 2, 13,929,695 free tokens",
        "  127.0.0.1:1",
        "  (not dialled back yet)",
        "4:6  n2 …222222",
        "  serving, float32, -",
        "  queue 0, 0 free tokens",
        "  127.0.0.1:1",
        "  (not dialled back yet)",
        "missing: blocks 3:4; host them:",
    ]
    assert shlex.split(command) == ["swarm", "node", "tiny", "--blocks", "3:4", "--swarm", "attic", "--peer", command.split()[-1]]


def test_a_wide_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(120, monkeypatch, capsys, record(1, Span(0, 6)))
    assert any(line.split()[:3] == ["blocks", "node", "state"] for line in lines)
    assert lines[-1].startswith("complete: every block has 1 node or more; thin clients cannot ask")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_gaps_are_exactly_the_blocks_without_a_replica(replicas: list[int]) -> None:
    missing = [block for gap in gaps_of(replicas) for block in range(gap.start, gap.stop)]
    assert missing == [block for block, count in enumerate(replicas) if count == 0]


# --- asking whole peers


def hosting(peer: Peer, *models: str) -> PeerRecord:
    served = tuple(one for name in models for one in hosted(ModelId(name, "ab" * 32), Span(0, 2), 2))
    return PeerRecord(
        peer=peer.peer_id, addresses=tuple(peer.addresses), certificate=peer.certificate, state="serving", hosted=served
    )


async def test_without_a_name_the_models_of_most_peers_are_shown(tmp_path: Path) -> None:
    memory = NameMemory(remembered.file_of(tmp_path, "public"))
    async with Peer(PeerConfig(data_dir=tmp_path)) as one, Peer(PeerConfig(data_dir=tmp_path, bootstrap=one.multiaddrs)) as two:
        await two.joined()
        for peer, models in ((one, ("a", "b", "c")), (two, ("c", "b"))):
            await peer.directory.announce(lambda peer=peer, models=models: hosting(peer, *models), models)  # type: ignore[misc]
        entered = Entered(peers=one.multiaddrs)
        rows, _ = await status._ask(None, entered, FindConfig(), memory, lambda _wait: None, max_models=2)
    assert sorted(one.name for one in rows) == ["b", "c"]
    assert {peer.state for one in rows for peer in one.peers} == {"serving"}


async def test_those_for_whom_there_was_no_time_are_called_unasked(tmp_path: Path) -> None:
    """A thousand made-up records must not hold `swarm status` up."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        made_up = [from_seed(number.to_bytes(32, "big")).peer_id for number in range(AT_ONCE + 50)]
        records = {peer: PeerRecord(peer=peer, addresses=(address,), state="serving") for peer in made_up}
        async with Peer(PeerConfig(data_dir=tmp_path)) as host, Peer(PeerConfig(data_dir=tmp_path)) as us:
            assert await status._silent(us, {host.peer_id: hosting(host, "a")}) == {}
            started = time.monotonic()
            states = await status._silent(us, records, ask_s=3.2, hello_s=2.0)
            assert time.monotonic() - started < 30, "one after the other would have taken minutes"
    assert Counter(states.values()) == {SILENT: AT_ONCE, UNASKED: 50}
