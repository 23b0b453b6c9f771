"""A wait is shown in time, and nothing of it stays.

Neither on the screen nor within an answer.
"""

from __future__ import annotations

import io
import os
import pty
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.cli.terminal import status_line
from node.cli.terminal.console import remark, write_piece
from node.cli.terminal.status_line import LINE, fitted
from node.cli.terminal.waiting import PERSON_S, REPEAT_S, SCRIPT_S, Board, Said, for_person, for_script, seconds_left, shown
from protocols.ids import Span
from swarm import waiting
from swarm.waiting import ANSWERING, READING, Waits
from tests.node.cli.screen import Screen

MISSING = waiting.missing([Span(24, 30)], 100.0, 60.0)


def test_a_person_sees_a_wait_that_lasts_and_how_long_it_may_last() -> None:
    assert for_person(MISSING, 100.0, 100.0 + PERSON_S / 2) is None
    assert for_person(MISSING, 100.0, 112.0) == "waiting for blocks 24:30, no live node hosts them (12 s of 60)"
    assert for_person(READING.at(2, 5), 100.0, 103.2) == "reading the prompt: 40 % (3 s, 5 s left)"


def test_what_is_left_is_estimated_from_what_was_done_since_the_wait_began() -> None:
    """A download that goes on has much of it before."""
    half = READING.at(50, 100)
    assert seconds_left(half, 10.0, 0) == 10.0 and seconds_left(half, 10.0, 40) == 50.0
    assert [seconds_left(one, at_s, 0) for one, at_s in ((half, 1.9), (READING, 9.0), (READING.at(0, 9), 9.0))] == [None] * 3
    assert [for_person(half, 0.0, at_s, 40) for at_s in (10.0, 100.0, 4_000.0)] == [
        "reading the prompt: 50 % (10 s, 50 s left)",
        "reading the prompt: 50 % (100 s, 8 min left)",
        "reading the prompt: 50 % (4000 s, 6 h left)",
    ]


def test_the_wait_for_one_token_of_a_slow_model_is_no_news() -> None:
    assert for_person(ANSWERING, 100.0, 101.5) is None
    assert for_person(ANSWERING, 100.0, 104.0) == "waiting for the nodes' answer (4 s)"


def test_a_script_is_told_after_five_seconds_and_again_if_it_waits_for_something_else_or_once_a_minute() -> None:
    assert for_script(MISSING, 100.0, 100.0 + SCRIPT_S - 0.1, None) is None
    assert for_script(MISSING, 100.0, 105.0, None) == "waiting for blocks 24:30, no live node hosts them (5 s of 60)"
    said = Said(MISSING.key, 105.0)
    assert for_script(MISSING, 100.0, 105.0 + REPEAT_S - 1, said) is None
    assert for_script(MISSING, 100.0, 105.0 + REPEAT_S, said) is not None
    assert for_script(READING.at(1, 100), 107.0, 112.0, said) == "reading the prompt: 1 % (5 s, 8 min left)"
    read = Said(READING.key, 112.0)
    assert for_script(READING.at(90, 100), 107.0, 120.0, read) is None  # another per cent is nothing else


def test_a_narrow_terminal_keeps_the_numbers() -> None:
    line = for_person(MISSING, 100.0, 112.0) or ""
    assert fitted(line, 200) == line
    assert fitted(line, 39) == "waiting for blocks 2… them (12 s of 60)"
    assert (
        fitted("hashing the weights of a large model: 40 % (100 s, 150 s left)", 39) == "hashing the …: 40 % (100 s, 150 s left)"
    )
    assert all(len(fitted(line, cells)) <= cells for cells in range(0, 90))
    assert fitted("of\x1b[2J a peer", 40) == "of [2J a peer"


class Terminal:
    """A pty that takes the place of stdout and stderr; `screen` is what it shows."""

    def __init__(self, columns: int, rows: int) -> None:
        self.screen = Screen(columns, rows)
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (rows, columns))
        self.stream = os.fdopen(theirs, "w", encoding="utf-8")

    def look(self) -> list[str]:
        """Everything that was written so far."""
        self.stream.flush()
        os.write(self.stream.fileno(), b"\x00")  # a mark: what comes before it has been read
        while b"\x00" not in (data := os.read(self._ours, 65_536)):
            self.screen.feed(data.decode())
        self.screen.feed(data.replace(b"\x00", b"").decode())
        return self.screen.lines

    def take(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From now on it is stdout and stderr. (Not in the fixture: pytest puts its own there before the test begins.)"""
        monkeypatch.setattr(sys, "stdout", self.stream)
        monkeypatch.setattr(sys, "stderr", self.stream)
        monkeypatch.setenv("TERM", "xterm")

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@pytest.fixture(params=[(40, 8), (40, 3)], ids=["lines below", "at the bottom"])
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    found = Terminal(*request.param)
    LINE.has_printed("\n")
    yield found
    monkeypatch.undo()
    found.close()
    LINE.erase()
    LINE.has_printed("\n")


def test_the_line_stands_below_an_answer_and_is_gone_when_that_goes_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.take(monkeypatch)
    write_piece("One\nTwo\nThe answer")
    LINE.draw("reading: 1 %")
    assert terminal.look()[-2:] == ["The answer", "reading: 1 %"]
    LINE.draw("reading: 2 %")
    assert terminal.look()[-2:] == ["The answer", "reading: 2 %"]
    write_piece(" goes on")
    assert terminal.look()[-2:] == ["Two", "The answer goes on"]
    write_piece("\n")
    LINE.draw("waiting")
    assert terminal.look()[-1] == "waiting"
    remark("4 tokens")
    assert terminal.look()[-2:] == ["The answer goes on", "4 tokens"]


def test_an_answer_that_fills_its_line_to_the_edge_loses_no_letter(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.take(monkeypatch)
    write_piece("x" * 40)
    LINE.draw("waiting")
    assert terminal.look() == ["x" * 40, "waiting"]
    write_piece("y")
    assert terminal.look() == ["x" * 40, "y"]
    write_piece("y" * 39 + "z")
    LINE.draw("waiting")
    write_piece("z")
    assert terminal.look()[-2:] == ["y" * 40, "zz"]


def test_a_line_longer_than_the_terminal_is_cut_and_taken_away_whole(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.take(monkeypatch)
    LINE.draw("w" * 100)
    assert len(terminal.look()) == 1
    LINE.erase()
    assert terminal.look() == []


def test_a_board_clears_its_line_before_whoever_was_waited_for_goes_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.take(monkeypatch)
    now_s = [0.0]
    board = Board(lambda: now_s[0])
    board.set(READING.at(40, 100))
    board.look()
    assert terminal.look() == []
    now_s[0] = 2.0
    board.look()
    assert terminal.look() == ["reading the prompt: 40 % (2 s)"]
    board.set(None)
    assert terminal.look() == []
    board.set(ANSWERING)  # another step: its time begins anew
    now_s[0] = 4.0
    board.look()
    assert terminal.look() == []


@contextmanager
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    yield stderr


def test_a_script_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    board = Board(lambda: now_s[0])
    with script(monkeypatch) as stderr:
        for second in range(130):
            now_s[0] = float(second)
            board.set(READING.at(second, 130))
            board.look()
    assert stderr.getvalue().splitlines() == [
        "reading the prompt: 3 % (5 s, 2 min left)",
        "reading the prompt: 50 % (65 s, 65 s left)",
        "reading the prompt: 96 % (125 s, 5 s left)",
    ]


def test_a_terminal_that_cannot_erase_gets_the_lines_of_a_script(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> None:
    terminal.take(monkeypatch)
    assert status_line.is_usable()
    monkeypatch.setenv("TERM", "dumb")
    assert not status_line.is_usable()


def test_nothing_is_written_where_stderr_was_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    board = Board(lambda: now_s[0])
    monkeypatch.setattr(sys, "stderr", None)
    board.set(READING)
    now_s[0] = 100.0
    board.look()


def test_the_thread_that_shows_ends_with_the_command() -> None:
    with shown() as on_wait, Waits(on_wait).on(READING):
        assert any(thread.name == "waiting" for thread in threading.enumerate())
    assert not any(thread.name == "waiting" for thread in threading.enumerate())
