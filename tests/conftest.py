"""Settings for every test, on a machine with other work.

Hypothesis has no deadline per example, and a failure prints how to repeat it. Torch computes in one thread and does not spin while it
waits, here and in the processes that tests start. What the person who runs them has configured for `swarm`, and which
peers it remembers, counts for none. Nor does it that a shell in the background, or nohup, ignores signals: processes would inherit that.
"""

import atexit
import gc
import json
import logging
import os
import shutil
import signal
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.fast import Processes
from tests.forked import ForkServer

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["XDG_CONFIG_HOME"] = "/nowhere"
os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="murmuration-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_DATA_HOME"], ignore_errors=True)

for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

WITH_RUNNING_SWARM = tuple(f"tests/end_to_end/test_{name}.py" for name in ("deaths", "leaving", "no_spare", "untrusted_peers"))

settings.register_profile("shared machine", deadline=None, print_blob=True)
settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out the tests that start processes (by folder: tests/fast.py)")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Processes(config.getoption("--fast")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files directly in `tests/` first: some take a minute, and at the end the other processes of the suite would be idle."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """None: xdist's own. Files that share the seven nodes of `running_swarm` go to one process, or each would start seven."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return file if file not in WITH_RUNNING_SWARM else WITH_RUNNING_SWARM[0]

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """The million objects of all imports and tests stay to the end: no later collection looks at them (`gc.get_objects` neither)."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The pauses at deaths that tests have recorded, in whichever process they ran."""
    ends = [
        report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", "") == "teardown"
    ]
    recorded = [dict(report.user_properties).get("pauses_s", []) for report in ends]
    if pauses_ms := sorted(1e3 * pause_s for pauses_s in recorded for pause_s in pauses_s):
        summary = {
            "deaths": len(pauses_ms),
            "median_ms": round(statistics.median(pauses_ms)),
            "p90_ms": round(pauses_ms[int(0.9 * len(pauses_ms))]),
            "max_ms": round(pauses_ms[-1]),
        }
        terminalreporter.write_line(f"pauses at deaths: {json.dumps(summary)}")


@pytest.fixture(scope="module", autouse=True)
def _data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests of another file have fetched, or remembered by name, is not here: `tiny` was other weights there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets levels and handlers (`node/logs.py`), which the next test must not find."""
    loggers = [logging.getLogger(name) for name in ("node", "swarm", "protocols")]
    before = [(logger.level, logger.handlers) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """One for all tests: its imports cost six seconds of a core."""
    with ForkServer() as server:
        yield server
