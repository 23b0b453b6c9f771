"""What `--fast` runs starts no process: neither do other tests outside the folders that may."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fast import TESTS, Processes, starts_processes


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("end_to_end/test_deaths.py", True),
        ("hostile/test_fuzz.py", True),
        ("node/cli/test_chat.py", True),
        ("swarm/dht/processes/test_node.py", True),
        ("test_scripts.py", True),
        ("swarm/dht/test_shelf.py", False),
        ("node/test_moving.py", False),
    ],
)
def test_folders_decide(path: str, may: bool) -> None:
    assert (TESTS / path).exists() and starts_processes(TESTS / path) is may


@pytest.mark.parametrize(("folder", "may"), [("swarm", False), ("swarm/processes", True)])
def test_a_test_that_starts_a_process_elsewhere_fails(folder: str, may: bool) -> None:
    plugin, item = Processes(is_fast=False), SimpleNamespace(path=TESTS / folder / "test_it.py")
    begin: Any = plugin.pytest_runtest_setup(item)  # type: ignore[arg-type]
    next(begin)
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)
    end: Any = plugin.pytest_runtest_teardown(item)  # type: ignore[arg-type]
    next(end)
    with pytest.raises(StopIteration if may else pytest.fail.Exception):
        end.send(None)
