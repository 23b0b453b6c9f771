"""A warning that repeats is printed once, until it is old.

What happened in between is not lost.
"""

from __future__ import annotations

import logging

import pytest

from node import logs
from node.logs import MAX_REMEMBERED, REPEAT_S, Repetitions


def test_the_same_warning_five_times_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO")
    for _time in range(5):
        logging.getLogger("swarm.peer.peer").warning("peer %s does not answer", "12D3")
        logging.getLogger("swarm.peer.peer").info("looked")
    logging.getLogger("swarm.peer.peer").warning("peer %s does not answer", "12D4")
    said = capsys.readouterr().err
    assert said.count("12D3 does not answer") == 1 and said.count("12D4 does not answer") == 1 and said.count("looked") == 5


def test_debugging_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("DEBUG")
    for _time in range(3):
        logging.getLogger("swarm.peer.peer").warning("again")
    assert capsys.readouterr().err.count("again") == 3


def test_an_old_warning_is_news_again_and_memory_is_bounded() -> None:
    now = [0.0]
    said = Repetitions(lambda: now[0])
    assert [said.is_new("a"), said.is_new("a"), said.is_new("b")] == [True, False, True]
    now[0] = REPEAT_S
    assert said.is_new("a") and not said.is_new("a")
    for number in range(MAX_REMEMBERED):
        said.is_new(str(number))
    assert said.is_new("a") and len(said._said_s) == MAX_REMEMBERED
