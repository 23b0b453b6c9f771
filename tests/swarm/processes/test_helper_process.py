"""How a helper process ends: by itself, or with its owner."""

from __future__ import annotations

import subprocess
import sys

from tests.end_to_end.processes import ROOT


def helper(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"import time; from swarm import helper_process; {program}"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_helper_ends_in_order_while_it_watches_its_owner() -> None:
    """Python aborts if it ends while a thread reads from sys.stdin."""
    with helper("helper_process.end_with_owner(print); time.sleep(0.2)") as process:
        assert process.wait(30) == 0
        assert process.stdout and process.stderr and process.stdout.read() == process.stderr.read() == ""


def test_a_helper_cleans_up_and_ends_with_its_owner() -> None:
    with helper("helper_process.end_with_owner(lambda: print('cleaned', flush=True)); time.sleep(60)") as process:
        said, _ = process.communicate(timeout=30)
        assert said == "cleaned\n" and process.returncode == 1


def test_what_a_library_prints_is_no_answer() -> None:
    with helper("found = helper_process.answers(); print('noise', flush=True); found.write(b'answer')") as process:
        assert process.communicate(timeout=30) == ("answer", "noise\n")
