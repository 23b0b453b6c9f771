"""A run of any length is noted within bounds."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.runs.trainer import journal_server
from node.runs.trainer.journal_server import WINDOW_S, JournalServer
from node.runs.trainer.notes import MAX_EVALUATIONS, MAX_EVENTS, MAX_VERSIONS, MAX_WITH_SAMPLES, Notes, noted_of, read_noted
from node.training.metrics import EvaluationRow, EventRow, MetricsFile, VersionRow
from protocols import journal
from protocols.errors import ModelNotFoundError, OverloadedError
from protocols.ids import ModelId, PeerId
from protocols.journal import JournalPart, JournalRequest, Noted, NotedEvaluation, NotedEvent, NotedVersion
from swarm.clock import Clock
from swarm.rpc.call import Call
from tests.protocols.samples import ALICE, BOB

RUN = ModelId("prose", "ab" * 32)


def version(number: int, loss: float | None = 2.5) -> VersionRow:
    return VersionRow(
        version=number, tokens=1_024 * number, loss=loss, lr=0.1, grad_norm=0.5, time_s=2.0 * number, tokens_per_s=512.0, peers=2,
        bytes_sent=9, waiting_s=0.1, redone=0,
    )  # fmt: skip


def evaluation(number: int, **samples: str) -> EvaluationRow:
    return EvaluationRow(
        evaluation=number, loss=2.0, perplexity=math.exp(2), bits_per_byte=0.9, tokens=64, time_s=2.0 * number, samples=samples
    )


def event(number: int, text: str = "") -> EventRow:
    return EventRow(event="joined", version=number, time_s=2.0 * number, text=text)


def all_of(notes: Notes) -> list[Noted]:
    """As a watcher gets them, part by part."""
    found, last = list[Noted](), 0
    while last < notes.newest:
        some, last = notes.after(last)
        assert len(some) <= journal.MAX_NOTES
        found += some
    return found


def test_a_long_run_is_thinned_out_evenly_and_its_ends_stay() -> None:
    notes = Notes()
    for number in range(1, 10_001):
        notes.add(version(number))
    kept = [note.version for note in all_of(notes)]
    assert MAX_VERSIONS // 2 <= len(kept) <= MAX_VERSIONS and kept[0] == 1 and kept[-1] == 10_000
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert max(gaps) <= 100, "a curve without holes"
    assert notes.newest == 10_000


def test_events_and_samples_are_the_newest() -> None:
    notes = Notes()
    for number in range(1, 400):
        notes.add(event(number, f"stage {number}"))
        notes.add(evaluation(number, Once="upon\na time"))
    found = all_of(notes)
    events = [note for note in found if isinstance(note, NotedEvent)]
    evaluations = [note for note in found if isinstance(note, NotedEvaluation)]
    assert [events[0].text, events[-1].text, len(events)] == ["stage 200", "stage 399", MAX_EVENTS]
    assert len(evaluations) <= MAX_EVALUATIONS
    assert [len(note.samples) for note in evaluations[-MAX_WITH_SAMPLES - 1 :]] == [0] + [1] * MAX_WITH_SAMPLES
    assert evaluations[-1].samples == (("Once", "upon a time"),)


def test_a_run_that_goes_back_has_one_row_for_each_version() -> None:
    notes = Notes()
    for number in range(1, 8):
        notes.add(version(number, 3.0))
        notes.add(evaluation(number))
    read = notes.newest
    for number in range(5, 7):
        notes.add(version(number, 1.0))
    versions = [(note.version, note.loss) for note in all_of(notes) if isinstance(note, NotedVersion)]
    assert versions == [(1, 3.0), (2, 3.0), (3, 3.0), (4, 3.0), (5, 1.0), (6, 1.0)]
    assert [note.version for note in notes.after(read)[0]] == [5, 6], "a watcher hears what is new alone"
    assert [note.version for note in all_of(notes) if isinstance(note, NotedEvaluation)] == [1, 2, 3, 4]


def test_whatever_a_run_notes_can_be_sent() -> None:
    """NaN, infinity, control characters, long texts, thousands of prompts: `parse` refuses them, so they must not be sent."""
    odd = [
        noted_of(replace(version(3), loss=math.nan, tokens_per_s=math.inf, grad_norm=-1.0)),
        noted_of(
            replace(evaluation(3, **{f"prompt {one}": "\x1b[31m<b>" + "x" * 900 for one in range(30)}), bits_per_byte=math.inf)
        ),
        noted_of(event(3, "line\nline\x07" * 300)),
    ]
    part = JournalPart(journal=b"8 bytes.", last=3, newest=3, notes=tuple(odd))
    assert JournalPart.parse(part.encode()) == part
    first, second, third = odd
    assert isinstance(first, NotedVersion) and isinstance(second, NotedEvaluation) and isinstance(third, NotedEvent)
    assert (first.loss, first.tokens_per_s, first.grad_norm) == (None, 0.0, 0.0) and second.bits_per_byte is None
    assert len(second.samples) == journal.MAX_SAMPLES and second.samples[0][1].startswith("\\x1b[31m<b>xxx")
    assert len(third.text) == journal.MAX_TEXT and third.text.endswith("…")


def test_an_earlier_process_s_rows_are_given_too(tmp_path: Path) -> None:
    assert read_noted(tmp_path) == []
    with MetricsFile(tmp_path) as file:
        for note in (version(1), event(1, "attic"), version(2), evaluation(2, Once="more")):
            file.write(note)
    (tmp_path / "metrics.jsonl").open("a").write('{"version": 3}\n{"half')
    notes = Notes(read_noted(tmp_path))
    notes.add(version(4))
    assert [
        noted_of(note) for note in (version(1), version(2), evaluation(2, Once="more"), event(1, "attic"), version(4))
    ] == all_of(notes)


class Hands:
    """Of a clock that stands still."""

    s = 0.0


def call_of(peer: PeerId, address: str = "127.0.0.1") -> Call:
    return Call(peer, lambda: None, address)


async def test_a_trainer_gives_its_journal_in_parts_to_callers_that_do_not_ask_too_often() -> None:
    hands, sent = Hands(), list[int]()
    server = JournalServer(sent.append, Clock(now_s=lambda: hands.s))
    handler: Any = server.handlers()["journal"]

    async def ask(after: int = 0, of: bytes = b"", peer: PeerId = ALICE.peer_id, address: str = "127.0.0.1") -> JournalPart:
        request = JournalRequest(run=RUN, journal=of, after=after).encode()
        return JournalPart.parse(await handler(request, call_of(peer, address)))

    with pytest.raises(ModelNotFoundError, match="no trainer here"):
        await ask()
    notes = Notes()
    for number in range(1, 101):
        notes.add(version(number))
    server.open(RUN, notes, lambda: BOB.peer_id)
    first = await ask()
    assert (first.last, first.newest, first.coordinator) == (journal.MAX_NOTES, 100, BOB.peer_id)
    second = await ask(first.last, first.journal)
    assert [note.version for note in (*first.notes, *second.notes)] == list(range(1, 101)) and second.last == 100
    assert not (await ask(100, first.journal)).notes
    assert (await ask(100, b"another.")).notes == first.notes, "of an earlier start: from the beginning"
    assert len(sent) == 4 and sum(sent) < 16_000
    for _ in range(journal_server.MAX_PER_CALLER - 4):
        await ask(100, first.journal)
    with pytest.raises(OverloadedError, match="too often"):
        await ask(100, first.journal)
    await ask(100, first.journal, BOB.peer_id)
    hands.s += WINDOW_S
    await ask(100, first.journal)


async def test_one_network_with_many_peer_ids_is_bounded_too() -> None:
    server = JournalServer(clock=Clock(now_s=lambda: 0.0))
    server.open(RUN, Notes(), lambda: None)
    handler: Any = server.handlers()["journal"]
    request = JournalRequest(run=RUN).encode()
    for number in range(journal_server.MAX_PER_PREFIX):
        await handler(request, call_of(PeerId(f"peer {number}"), f"9.9.9.{number % 250}"))
    with pytest.raises(OverloadedError):
        await handler(request, call_of(PeerId("one more"), "9.9.9.251"))
    await handler(request, call_of(PeerId("one more"), "9.9.10.1"))
