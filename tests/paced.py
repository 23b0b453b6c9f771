"""Nodes whose forwards are slow if a test says so.

A test that does something in the middle of an answer, or of a run, is late on a busy machine. While `Pace.slow` is on, each forward of the
processes of a pool waits so long, those of training, too, and the answer is not over before that was done.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarm import files

CODE = "from tests.paced import main; main()"
"""Arguments: the file of a `Pace`, and those of `swarm`."""

SLOW_S = 0.05


@dataclass(frozen=True)
class Pace:
    """A file that processes read before each forward; without it they do not wait."""

    file: Path

    @contextlib.contextmanager
    def slow(self, seconds: float = SLOW_S) -> Iterator[None]:
        files.replace(self.file, str(seconds).encode())
        try:
            yield
        finally:
            self.file.unlink()

    def before(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A method that waits first."""

        def paced(*arguments: Any) -> Any:
            with contextlib.suppress(FileNotFoundError):
                time.sleep(float(self.file.read_text()))
            return forward(*arguments)

        return paced


def main() -> None:
    """`swarm ARGUMENTS`, paced."""
    from node.cli import app
    from node.serving.executor import Executor
    from node.training.pass_compute import PassCompute

    file, sys.argv = sys.argv[1], ["swarm", *sys.argv[2:]]
    pace = Pace(Path(file))
    for computing in (Executor, PassCompute):
        computing.forward = pace.before(computing.forward)  # type: ignore[attr-defined]
    app.main()
