"""Wheels from the package index, by `pip download`. Nothing is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class DownloadError(Exception):
    """The wheels could not be had; the text is one line."""


def download(folder: Path, wanted: Sequence[str], *options: str) -> None:
    """The wheels of these requirements into `folder`, without what they depend on. pip's progress goes to stderr. DownloadError."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps",
               "--only-binary", ":all:", *options, "--dest", str(folder), *wanted]  # fmt: skip
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip said nothing")
        raise DownloadError(
            f"pip could not download {wanted[0] if len(wanted) == 1 else f'{len(wanted)} wheels'} ({reason[:200]}); "
            "check the network, or pip's settings (pip config list)"
        )
