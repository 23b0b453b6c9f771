"""What keys have used of a day's tokens, in a file.

A restart forgets nothing: it is written every few seconds and at the end, so a crash forgets only what came since. Keys are named by their
hashes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from swarm import files

log = logging.getLogger(__name__)

FILE = "gateway_spent.json"
"""Beside the file of the keys."""

MAX_BYTES = 1 << 20

Spent = Mapping[str, tuple[int, int]]
"""SHA-256 of a key -> the day of UTC, counted from 1970, and the tokens used in it."""


def read(path: Path) -> Spent:
    """Nothing if there is no file, or it is damaged, which the log says."""
    try:
        return {str(key): _pair(value) for key, value in json.loads(files.read(path, MAX_BYTES))["spent"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("%s cannot be used (%s): the tokens of today count from now on", path, error)
        return {}


def _pair(value: object) -> tuple[int, int]:
    day, used = value if isinstance(value, list) and len(value) == 2 else (None, None)
    if type(day) is not int or type(used) is not int or min(day, used) < 0:
        raise ValueError(f"expected a day and tokens, got {str(value)[:80]}")
    return day, used


def write(path: Path, spent: Spent) -> None:
    """Replace the file; what goes wrong is logged, since answers matter more."""
    try:
        files.replace(path, json.dumps({"spent": spent}) + "\n")
    except OSError as error:
        log.warning("the tokens that keys have used cannot be kept in %s: %s", path, error.strerror)
