"""Decides by folder which tests may start processes.

`--fast` leaves these out, and no other test may start one.
Of tests that run for many families of models, `--fast` runs those of FAMILIES_OF_FAST.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from multiprocessing import util
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOLDERS = ("end_to_end", "hostile", "node/cli")
"""All below them; so are all in a folder `processes`, and the files that lie directly in `tests/`."""

FAMILIES_OF_FAST = ("llama",)
"""`--fast` leaves out the other families, among them those with experts or a running state. The whole suite runs all."""

EVENTS = frozenset(
    ["subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "multiprocessing.spawn", "tests.forked"]
)
"""Audit events with which a process starts: Python's, the one below, and that of `tests/forked.py`."""

_spawnv_passfds = util.spawnv_passfds


def _spawn_audited(path: bytes, args: Sequence[object], passfds: Sequence[int]) -> int:
    """How multiprocessing starts a process by `spawn` or `forkserver`: Python has no audit event for it."""
    sys.audit("multiprocessing.spawn", str(path))
    return _spawnv_passfds(path, args, passfds)


util.spawnv_passfds = _spawn_audited


def starts_processes(path: Path) -> bool:
    """Whether the tests of this file may start processes."""
    place = path.relative_to(TESTS).parent
    return place == Path() or "processes" in place.parts or any(place.is_relative_to(folder) for folder in FOLDERS)


def is_fast(item: pytest.Item) -> bool:
    """Whether `--fast` runs this test."""
    from tests.families import FAMILIES  # imports transformers

    values = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
    families = {value for value in values if isinstance(value, str) and value in FAMILIES}
    return not starts_processes(item.path) and families <= set(FAMILIES_OF_FAST)


class Processes:
    """A plugin: deselects for `--fast`, and fails a test that starts a process without being in such a folder."""

    def __init__(self, is_fast: bool) -> None:
        self._is_fast, self._is_watching = is_fast, False
        self._started: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._is_watching and event in EVENTS:
            self._started.append(f"{event} {arguments[:1]}")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if self._is_fast:
            config.hook.pytest_deselected(items=[item for item in items if not is_fast(item)])
            items[:] = [item for item in items if is_fast(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self._is_watching = not starts_processes(item.path)
        self._started.clear()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        result = yield
        self._is_watching = False
        if self._started:
            pytest.fail(f"started a process: {self._started[0]}; tests that do belong in a folder `processes` (tests/fast.py)")
        return result
