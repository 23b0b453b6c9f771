"""A node that ends itself counts the time in which it runs."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.end_to_end.processes import ROOT

PROGRAM = """
import time
from node.cli.host.node import _LastResort
_LastResort({after_s})
print("running", flush=True)
for _ in range(10):
    time.sleep(0.05)
print("left", flush=True)
time.sleep(60)
"""


def started(after_s: float) -> subprocess.Popen[str]:
    """A process that needs half a second to leave, and ends itself after `after_s`."""
    command = [sys.executable, "-c", PROGRAM.format(after_s=after_s)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "running\n"
    return process


def test_a_process_that_was_stopped_has_its_whole_time_to_leave() -> None:
    process = started(after_s=3.0)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.5)  # longer than its limit: that it was stopped for so long is the thing under test
    process.send_signal(signal.SIGCONT)
    said, remarks = process.communicate(timeout=60)
    assert said == "left\n" and process.returncode == 0, remarks
    assert "left without waiting for a thread that was still busy" in remarks


def test_a_process_that_does_not_leave_ends_itself() -> None:
    said, remarks = started(after_s=0.1).communicate(timeout=60)
    assert said == "" and "left without waiting for a thread that was still busy" in remarks
