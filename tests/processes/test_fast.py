"""The tests of `--fast` start no process.

Only tests in the folders of processes may start one.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.families import FAMILIES
from tests.fast import FAMILIES_OF_FAST, TESTS, Processes, starts_processes
from tests.forked import ForkServer


@pytest.mark.parametrize(
    ("path", "may"),
    [
        ("end_to_end/test_deaths.py", True),
        ("hostile/test_fuzz.py", True),
        ("node/cli/test_chat.py", True),
        ("swarm/dht/processes/test_node.py", True),
        ("test_scripts.py", True),
        ("swarm/dht/test_shelf.py", False),
        ("node/placement/test_moving.py", False),
    ],
)
def test_folders_decide(path: str, may: bool) -> None:
    assert (TESTS / path).exists() and starts_processes(TESTS / path) is may


def by_subprocess(_: ForkServer) -> None:
    subprocess.run([sys.executable, "-S", "-c", ""], check=True)


def by_multiprocessing(_: ForkServer) -> None:
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def by_fork_server(server: ForkServer) -> None:
    assert server.run(["pass"], kind="code").returncode == 0


@pytest.mark.parametrize(("folder", "may"), [("swarm", False), ("swarm/processes", True)])
@pytest.mark.parametrize("start", [by_subprocess, by_multiprocessing, by_fork_server])
def test_a_test_that_starts_a_process_elsewhere_fails(
    start: Callable[[ForkServer], None], folder: str, may: bool, fork_server: ForkServer
) -> None:
    plugin, item = Processes(is_fast=False), SimpleNamespace(path=TESTS / folder / "test_it.py")
    begin: Any = plugin.pytest_runtest_setup(item)  # type: ignore[arg-type]
    next(begin)
    start(fork_server)
    end: Any = plugin.pytest_runtest_teardown(item)  # type: ignore[arg-type]
    next(end)
    with pytest.raises(StopIteration if may else pytest.fail.Exception):
        end.send(None)


def test_fast_leaves_out_processes_and_other_families() -> None:
    """By the values of a test's parameters, as pytest hands them to a plugin."""

    def item(path: str, family: str) -> Any:
        made = pytest.Function.__new__(pytest.Function)
        made.path, made.callspec = TESTS / path, SimpleNamespace(params={"family": family, "num_blocks": 2})
        return made

    other = next(family for family in FAMILIES if family not in FAMILIES_OF_FAST)
    kept, slow, starts = (
        item("swarm/models/test_span.py", FAMILIES_OF_FAST[0]),
        item("swarm/models/test_span.py", other),
        item("end_to_end/test_families.py", FAMILIES_OF_FAST[0]),
    )
    deselected: list[Any] = []
    config: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items)))
    for fast, left in ((True, [kept]), (False, [slow, kept, starts])):
        items = [slow, kept, starts]
        Processes(fast).pytest_collection_modifyitems(config, items)
        assert items == left
    assert deselected == [slow, starts]
