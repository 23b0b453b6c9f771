"""What `swarm train` shows: lines for scripts, a display for people."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
from rich.console import Console

from node.cli.train.train_display import LineDisplay, LiveDisplay, open_display, sparks, version_line
from node.events import Event
from node.runs.trainer.local_trainer import train_locally
from node.training.metrics import EventRow, VersionRow, mean_row
from node.training.spec.reading import read
from scripts.run_files import write_run
from swarm.waiting import Wait, Waits

ROW = VersionRow(
    version=1, tokens=2048, loss=3.25, lr=1e-3, grad_norm=0.5, time_s=1.0, tokens_per_s=1_500.0, peers=3, bytes_sent=2_500_000,
    waiting_s=0.1, redone=2,
)  # fmt: skip
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
SAID = {"A list is": "\n a  list\x1b[2J of things"}


class Hand:
    """A clock that a test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_takes_seconds_before_the_first_version_is_told_with_how_far_it_is(tmp_path: Path) -> None:
    told: list[Wait | None] = []
    file = read(write_run(tmp_path / "run", {"training.steps": 1, "schedule.warmup_steps": 0}))
    train_locally(file, tmp_path / "data", tmp_path / "out", lambda event: None, waits=Waits(told.append))
    kinds = [wait.kind if wait else "nothing" for wait in told]
    assert [kind for kind, _ in groupby(kinds) if kind != "nothing"] == ["encoding", "loading", "training"]
    assert told[-1] is None and any(wait and wait.percent == 100 for wait in told)


def test_a_script_gets_a_line_a_second_and_the_last_version(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Hand()
    display = LineDisplay(6, clock=clock)
    for number, now_s in ((1, 0.0), (2, 0.4), (3, 0.9), (4, 1.1), (5, 1.2), (6, 1.3)):
        clock.now_s = now_s
        display.row(replace(ROW, version=number))
    display.row(mean_row(6, 30.0, 10, 24, 6.5, SAID))
    display.row(EventRow(event="gone", version=6, time_s=1.0, text="anna"))
    display.row(EventRow(event="waiting", version=6, time_s=1.0, text="for a stage"))
    display.event(Event("waiting", "for a stage"))
    display.row(EventRow(event="restoring", version=6, time_s=1.0, text="version 4"))
    display.event(Event("restoring", "version 4"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("version")] == ["1", "4", "6"]
    assert lines[0] == "version: 1: loss 3.2500, lr 1.00e-03, grad 0.500, 1,500 tokens/s, 3 stages, 2.5 MB sent, 2 redone"
    assert version_line(replace(ROW, loss=None)).startswith("1: loss unknown, lr")
    assert version_line(replace(ROW, peers=1)).count("1 stage,") == 1
    assert lines[3] == "evaluation: 6: loss 3.0000, perplexity 20.09, 1.8034 bits per byte"
    assert lines[4].startswith("sample: 6: A list is a list") and "\x1b" not in lines[4]
    assert lines[5:] == ["gone: anna", "waiting: for a stage", "restoring: version 4"]


@pytest.mark.parametrize("width", [40, 100])
def test_a_person_sees_where_the_run_is_and_when_it_ends(width: int) -> None:
    clock = Hand()
    console = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    display = LiveDisplay("prose", 100, console, clock)
    for number in range(1, 11):
        clock.now_s += 2.0
        display.row(replace(ROW, version=number, loss=8 - number / 2))
    display.row(mean_row(10, 30.0, 10, 24, 6.5, SAID))
    display.event(Event("waiting", "no stage hosts block 3"))
    with console.capture() as captured:
        console.print(display.render())
    text = captured.get()
    for shown in ("prose", "10/100", "3 min 00 s left", "3.0000", "1.803 at 10", "1,500", "25.0 MB", "A list is a list", "20"):
        assert shown in text, f"{shown} is not in:\n{text}"
    assert "no stage hosts block 3" in text and "\x1b[2J" not in text
    assert all(len(line) <= width for line in text.splitlines())


def test_a_question_before_ready_reaches_the_terminal_and_the_display_begins_with_ready(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = io.StringIO()
    display = LiveDisplay("prose", 100, Console(file=out, width=100, height=24, force_terminal=True, color_system=None))
    with display.shown():
        display.event(Event("multiaddr", "/ip4/127.0.0.1/tcp/4000"))
        print("join? [y/N] ", end="", file=sys.stderr, flush=True)
        assert capsys.readouterr().err == "join? [y/N] " and "0/100" not in out.getvalue()
        display.event(Event("ready"))
        print("a remark", file=sys.stderr)
    assert "a remark" in out.getvalue() and "0/100" in out.getvalue(), "remarks scroll by above the display"


def test_a_second_ctrl_c_ends_the_process_with_the_cursor_shown() -> None:
    script = (
        "import asyncio\nfrom node.cli.host.node import run_until_signalled\n"
        "async def work():\n"
        "    print(f'{HIDDEN}begun', flush=True)\n"
        "    try: await asyncio.sleep(60)\n"
        "    finally:\n"
        "        print('closing', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        f"HIDDEN = {HIDDEN!r}\nrun_until_signalled(work)\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            shown = until(ours, "begun")
            process.send_signal(signal.SIGINT)
            shown += until(ours, "closing")
            process.send_signal(signal.SIGINT)
            shown += until(ours, SHOWN)
            assert process.wait(60) == 130
        finally:
            process.kill()
            os.close(ours)
    assert shown.rfind(SHOWN) > shown.rfind(HIDDEN) >= 0


def until(terminal: int, text: str) -> str:
    """What is shown up to `text`."""
    shown = ""
    while text not in shown:
        assert select.select([terminal], [], [], 30)[0], f"no {text!r} in {shown!r}"
        shown += os.read(terminal, 65_536).decode()
    return shown


def test_without_a_terminal_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with open_display("prose", 100) as display:
        assert isinstance(display, LineDisplay)


def test_sparks_go_down_with_the_loss() -> None:
    assert sparks([4.0, 3.0, 2.0, 1.0]) == "█▆▃▁" and sparks([1.0]) == "" and sparks([2.0, 2.0]) == "▁▁"
    assert len(sparks([float(number) for number in range(1000)])) == 16
