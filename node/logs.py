"""Log lines of a node: one per decision, on stderr.

Never on stdout, which scripts read.

`MURMURATION_LOG` names the level (default: WARNING for a node, ERROR for who asks; `--debug` means DEBUG). The libraries
below us are quietened: their loggers and progress bars would write over ours.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

from protocols.words import one_line

OURS = ("node", "swarm", "protocols")


REPEAT_S = 600.0
"""Seconds in which the same warning is not printed again."""

MAX_REMEMBERED = 256
"""Warnings that are compared with; the oldest is forgotten first."""


class Repetitions:
    """Which texts were said lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_s: dict[str, float] = {}

    def is_new(self, text: str) -> bool:
        """True for a text that was not said within REPEAT_S, which counts as said from now on."""
        now_s = self._clock()
        said_s = self._said_s.get(text)
        if said_s is not None and now_s - said_s < REPEAT_S:
            return False
        self._said_s.pop(text, None)
        self._said_s[text] = now_s
        if len(self._said_s) > MAX_REMEMBERED:
            del self._said_s[next(iter(self._said_s))]
        return True


class _Once(logging.Filter):
    """Lets a warning or error through once: peers that fail again and again would fill the screen."""

    def __init__(self) -> None:
        super().__init__()
        self._repetitions = Repetitions()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.WARNING or record.exc_info is not None or self._repetitions.is_new(record.getMessage())


class _OneLine(logging.Formatter):
    """A record is one line, a traceback some; what a peer wrote into them cannot speak to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(one_line, super().formatException(ei).split("\n")))


def set_up(level: str) -> None:
    """Configure logging for this process; call it before hivemind or transformers are imported."""
    wanted = os.environ.get("MURMURATION_LOG", "").upper()
    if level != "DEBUG" and wanted in logging.getLevelNamesMapping():
        level = wanted
    _quieten_libraries(level == "DEBUG")
    handler = logging.StreamHandler(sys.stderr)
    if level != "DEBUG":
        handler.addFilter(_Once())
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_OneLine("%(message)s"))  # of libraries that bring no handler, as asyncio
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)


def _quieten_libraries(debug: bool) -> None:
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "INFO" if debug else "CRITICAL")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "warning" if debug else "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if debug else "NONE")
    if not debug:
        warnings.filterwarnings("ignore")
