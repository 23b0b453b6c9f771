"""Fault points kill a process exactly where they are armed.

They are armed by the environment, in a process of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm.faults import POINTS, Fault

WALK = "from swarm import faults\nfor n in range(4):\n for p in faults.POINTS:\n  print(p, n, flush=True); faults.point(p, n)"


def walk(**environment: str) -> subprocess.CompletedProcess[str]:
    """A process that passes every point of the steps 0 to 3, and prints each before it does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SWARM_FAULT")}
    return subprocess.run(
        [sys.executable, "-c", WALK], env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(("armed", "last"), [("after_compute:step=2", "after_compute 2"), ("before_history", "before_history 0")])
def test_the_process_dies_at_the_named_moment(armed: str, last: str) -> None:
    walked = walk(SWARM_FAULT=armed)
    assert walked.returncode == -signal.SIGKILL and walked.stdout.splitlines()[-1] == last


def test_nothing_dies_unarmed() -> None:
    walked = walk()
    assert walked.returncode == 0 and len(walked.stdout.splitlines()) == 4 * len(POINTS)


def test_of_several_that_share_a_folder_one_dies(tmp_path: Path) -> None:
    (tmp_path / "before_send:step=3").touch()
    outcomes = [walk(SWARM_FAULTS=str(tmp_path)).returncode for _ in range(2)]
    assert outcomes == [-signal.SIGKILL, 0] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "nowhere", "opened:step", "opened:step=x", "opened:stop=3"])
def test_a_misspelt_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Fault.parse(text)


@pytest.mark.parametrize("text", ["opened", "after_send:step=0", "before_compute:step=17"])
def test_faults_are_written_as_they_are_read(text: str) -> None:
    assert str(Fault.parse(text)) == text
