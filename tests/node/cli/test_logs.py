"""A warning that repeats is printed once, until it is old.

What happened in between is not lost.
"""

from __future__ import annotations

import contextvars
import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

from node import logs
from node.cli.app import main
from node.logs import MAX_REMEMBERED, REPEAT_S, Repetitions
from protocols.ids import PeerId, short_peer
from swarm import log_ids


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


PEER = PeerId("12D3KooWQyghzNm3dd2BoC926uxmm2Yck5hqypAagttkaPRaDtKr")
LOGGER = logging.getLogger("swarm.peer.peer")


def said_by(form: logs.Format, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Two lines, one of them within a session of a request."""

    def speak() -> None:
        log_ids.peer_is(PEER)
        LOGGER.warning("looked at \x1b]0;x\x07\n%s", "é")
        log_ids.request_is("chatcmpl-1")
        with log_ids.about_session("1a2b3c4d"):
            try:
                raise ValueError("bad\x1b")
            except ValueError:
                LOGGER.exception("failed")
        LOGGER.error("after it")

    logs.set_up("INFO", form)
    contextvars.Context().run(speak)
    return capsys.readouterr().err.splitlines()


def test_for_a_program_each_line_is_an_object_with_its_ids(capsys: pytest.CaptureFixture[str]) -> None:
    """auto, since this is no terminal."""
    lines = said_by("auto", capsys)
    first, second, third = map(json.loads, lines)
    assert "\x1b" not in "".join(lines) and "".join(lines).isascii()
    assert first.keys() == {"time", "level", "logger", "message", "peer"} and first["message"] == "looked at \x1b]0;x\x07\né"
    assert datetime.fromisoformat(first["time"]).tzinfo is not None and first["level"] == "WARNING"
    assert (second["peer"], second["session"], second["request"]) == (PEER, "1a2b3c4d", "chatcmpl-1")
    assert "ValueError: bad" in second["error"] and third.keys() == {"time", "level", "logger", "message", "peer", "request"}


def test_for_a_person_a_line_is_text_with_short_ids(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by("text", capsys)
    assert lines[0][8:] == r" WARNING swarm.peer.peer [peer …aDtKr]: looked at \x1b]0;x\x07 é".replace("…aDtKr", short_peer(PEER))
    assert (
        lines[1].endswith(f"[peer {short_peer(PEER)} session 1a2b3c4d request chatcmpl-1]: failed") and "ValueError" in lines[-2]
    )
    assert lines[-1].endswith("request chatcmpl-1]: after it")


def test_the_format_may_stand_anywhere_and_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chosen: list[str] = []
    monkeypatch.setattr(logs, "set_up", lambda level, form: chosen.append(form))
    whoami = ["whoami", "--data-dir", str(tmp_path)]
    for arguments in ([*whoami, "--log-format", "json"], ["--log-format=text", *whoami], whoami):
        with pytest.raises(SystemExit):
            main(arguments)
    monkeypatch.setenv("SWARM_LOG_FORMAT", "json")
    with pytest.raises(SystemExit):
        main(whoami)
    assert chosen == ["json", "text", "auto", "json"]
    with pytest.raises(SystemExit) as ended:
        main([*whoami, "--log-format", "xml"])
    assert ended.value.code == 2 and "--log-format is one of auto, text, json, got 'xml'" in capsys.readouterr().err


def test_what_libraries_log_is_an_object_for_a_program_too(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("INFO", "json")
    assert logging.lastResort is not None
    logging.lastResort.handle(
        logging.makeLogRecord({"name": "asyncio", "levelno": 40, "msg": "Task exception was never retrieved"})
    )
    assert json.loads(capsys.readouterr().err)["message"] == "Task exception was never retrieved"
