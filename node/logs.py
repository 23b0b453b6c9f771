"""Log lines of a node: one per decision, on stderr, never on stdout (which scripts read).

`MURMURATION_LOG` names the level (default: WARNING for a node, ERROR for who asks; `--debug` means DEBUG). The libraries
below us are quietened: their loggers and progress bars would write over ours.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

OURS = ("node", "swarm", "protocols")


def set_up(level: str) -> None:
    """Configure logging for this process; call it before hivemind or transformers are imported."""
    wanted = os.environ.get("MURMURATION_LOG", "").upper()
    if level != "DEBUG" and wanted in logging.getLevelNamesMapping():
        level = wanted
    _quieten_libraries(level == "DEBUG")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
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
