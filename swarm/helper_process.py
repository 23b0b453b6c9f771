"""A helper process: a module's `main` in an interpreter of its own.

We write to its stdin and read its stdout. The helper answers through `answers()`, and can end with us by `end_with_owner`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

_ROOT = Path(__file__).resolve().parents[1]
_START = "import importlib, sys; sys.path.insert(0, sys.argv[1]); importlib.import_module(sys.argv[2]).main(*sys.argv[3:])"


def start(module: str, *arguments: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Run `module.main(*arguments)`. Ctrl-C in a terminal does not reach it: it is for us."""
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _START, str(_ROOT), module, *arguments], cwd="/", env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def answers() -> BinaryIO:
    """In the helper: what its owner reads. What a library prints from now on is no answer."""
    found = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return found


def end_with_owner(clean_up: Callable[[], None]) -> None:
    """In the helper: if its owner ends, call `clean_up` and end. The owner writes nothing to stdin."""

    def wait() -> None:
        os.read(0, 1)  # not by sys.stdin: Python aborts if it ends while a thread reads from that
        clean_up()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
