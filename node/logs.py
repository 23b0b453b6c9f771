"""Log lines of a node: one per decision, on stderr.

Never on stdout, which scripts read. Each says whose it is and what it is about (`swarm/log_ids.py`): as text for a person, as a JSON
object for a program.

`MURMURATION_LOG` names the level (default: WARNING for a node and a gateway, ERROR for a command that asks; `--debug` means DEBUG). The
libraries below us are quietened: their loggers and progress bars would write over ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from protocols.ids import PeerId, short_peer
from protocols.words import one_line
from swarm import log_ids

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


class _WithIds(logging.Filter):
    """Adds `ids` to a record, as they are where it is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.ids = log_ids.current()
        return True


class _OneLine(logging.Formatter):
    """A record is one line, a traceback some; what a peer wrote into them cannot speak to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(one_line, super().formatException(ei).split("\n")))


LEVELS = {number: name for name, number in (("DEBUG", 10), ("INFO", 20), ("WARNING", 30), ("ERROR", 40), ("CRITICAL", 50))}
"""hivemind calls some of them otherwise, for the whole process."""


class _Text(_OneLine):
    """`12:00:00 WARNING swarm.peer.peer [peer …abc123 session 1a2b3c4d]: what happened`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(name)s%(about)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        ids: dict[str, str] = getattr(record, "ids", {})
        said = [f"{kind} {short_peer(PeerId(name)) if kind == 'peer' else name}" for kind, name in ids.items()]
        record.about = f" [{' '.join(said)}]" if said else ""
        record.level = LEVELS.get(record.levelno, record.levelname)
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """An object in one line. The keys are those of docs/commands.md; scripts may rely on them."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        facts = {
            "time": at,
            "level": LEVELS.get(record.levelno, record.levelname),
            "logger": record.name,
            "message": record.getMessage(),
        }
        facts |= getattr(record, "ids", {})
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        return json.dumps(facts)  # ASCII, so that no text of a peer can speak to a terminal


Format = Literal["auto", "text", "json"]
"""auto: text if stderr is a terminal, else JSON."""


def set_up(level: str, form: Format = "text") -> None:
    """Configure logging for this process; call it before hivemind or transformers are imported."""
    wanted = os.environ.get("MURMURATION_LOG", "").upper()
    if level != "DEBUG" and wanted in logging.getLevelNamesMapping():
        level = wanted
    _quieten_libraries(level == "DEBUG")
    handler = logging.StreamHandler(sys.stderr)
    if level != "DEBUG":
        handler.addFilter(_Once())
    handler.addFilter(_WithIds())
    is_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler.setFormatter(_Json() if is_json else _Text())
    if logging.lastResort is not None:  # of libraries that bring no handler, as asyncio
        logging.lastResort.setFormatter(_Json() if is_json else _OneLine("%(message)s"))
        logging.lastResort.filters = [_WithIds()]
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
