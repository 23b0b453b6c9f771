"""The fork server: its death, and the end of its processes."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.fork_server import kill_all
from tests.forked import ForkServer


def test_the_death_of_the_fork_server_ends_its_processes_and_is_told_at_once() -> None:
    with ForkServer() as server:
        children = [server.popen(["import time; print(flush=True); time.sleep(300)"], kind="code") for _ in range(2)]
        for child in children:
            assert child.stdout and child.stdout.readline() == "\n"  # it is there
        server._process.kill()
        assert [child.wait(60) for child in children] == [-signal.SIGKILL] * 2
        started_s = time.monotonic()
        for _ in range(2):
            with pytest.raises(AssertionError, match="fork server has ended"):
                server.popen(["pass"], kind="code")
        assert time.monotonic() - started_s < 60
        for child in children:
            assert child.communicate(timeout=60) == ("", ""), "streams that are closed: it has ended"


def test_a_process_that_has_no_session_of_its_own_yet_is_killed_with_the_others() -> None:
    with subprocess.Popen(["sleep", "300"]) as early, subprocess.Popen(["sleep", "300"], start_new_session=True) as late:
        kill_all([early.pid, late.pid])
        assert [process.wait(60) for process in (early, late)] == [-signal.SIGKILL] * 2
