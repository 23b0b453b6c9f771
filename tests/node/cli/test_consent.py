"""Neighbours are asked about once for each network, at a terminal only."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path
from node.cli.terminal import consent
from swarm.lan import network
network.name = lambda: sys.argv[2]
ask = consent.asker(Path(sys.argv[1]), sys.argv[3])
print("free" if ask is None else ask("heard 2 nodes of swarm `public` on this network"), flush=True)
"""


def at_terminal(folder: Path, network: str, swarm: str, typed: str) -> tuple[str, str]:
    """(what a person at a terminal is asked, the outcome) of one start."""
    ours, theirs = pty.openpty()
    os.write(ours, typed.encode())
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), network, swarm],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    outcome, _ = process.communicate(timeout=60)
    asked = b""
    while True:
        try:
            asked += os.read(ours, 4096)
        except OSError:  # a terminal whose other side is closed
            break
    os.close(ours)
    return asked.decode(), outcome.strip()


def test_a_yes_counts_for_its_network_and_a_no_for_once(tmp_path: Path) -> None:
    asked, outcome = at_terminal(tmp_path, "home", "public", "\n")
    assert outcome == "False" and "heard 2 nodes of swarm `public`" in asked and "--swarm NAME" in asked
    assert at_terminal(tmp_path, "home", "public", "y\n")[1] == "True"
    assert at_terminal(tmp_path, "home", "public", "")[1] == "free"
    assert at_terminal(tmp_path, "office", "public", "n\n")[1] == "False"


def test_a_network_without_a_name_is_asked_about_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        assert at_terminal(tmp_path, "", "public", "yes\n")[1] == "True"


@pytest.mark.parametrize("swarm", ["public", "ours"])
def test_scripts_and_who_named_the_swarm_are_not_asked(swarm: str, tmp_path: Path) -> None:
    if swarm == "ours":
        assert at_terminal(tmp_path, "home", swarm, "")[1] == "free"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "home", swarm], capture_output=True, text=True, input=""
    )
    assert result.stdout.strip() == "free" and result.stderr == ""


def test_no_line_is_drawn_into_a_question_and_whoever_draws_goes_on() -> None:
    ours, theirs = pty.openpty()
    script = (
        "import threading\nfrom node.cli.terminal.status_line import LINE\n"
        "with LINE.held():\n"
        "    drawing = threading.Thread(target=LINE.draw, args=('joining',)); drawing.start(); drawing.join(20)\n"
        "    assert not drawing.is_alive() and not LINE.is_drawn\n"
        "LINE.draw('joining'); assert LINE.is_drawn\n"
    )
    result = subprocess.run([sys.executable, "-c", script], stdin=theirs, stderr=theirs, timeout=60)
    os.close(theirs)
    assert result.returncode == 0
    assert os.read(ours, 4096).count(b"joining") == 1
    os.close(ours)
