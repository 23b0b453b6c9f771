"""Wheels for a machine with Python 3.12, torch and no network.

Torch, numpy and what torch itself depends on are the machine's own. Nothing here is for the DHT or for RPC: no check needs them.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pip_download

NAMES = (
    "transformers", "tokenizers", "safetensors", "huggingface-hub", "httpx2", "httpcore2", "truststore", "anyio", "h11", "idna",
    "click", "pyyaml", "regex", "tqdm", "packaging", "msgpack", "hypothesis", "sortedcontainers", "pytest", "pytest-timeout", "pluggy",
    "iniconfig", "pygments",
)  # fmt: skip
"""At the versions of requirements.lock."""

MAX_BYTES = 60_000_000
"""Largest sum of all wheels: a machine's working tree travels with them, and has at most 64 MiB."""

PYTHON = "3.12"
_PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_24_x86_64", "manylinux_2_28_x86_64")


class WheelsError(Exception):
    """The lock lacks a wheel, or the wheels are too large. One line."""


def pinned(lock: str) -> list[str]:
    """NAME==VERSION of every wheel, from the text of requirements.lock."""
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)$", lock, re.MULTILINE))
    missing = [name for name in NAMES if name not in versions]
    if missing:
        raise WheelsError(f"requirements.lock has no version of {', '.join(missing)}; correct NAMES in scripts/gpu/wheels.py")
    return [f"{name}=={versions[name]}" for name in NAMES]


def fetch(folder: Path, lock: Path) -> list[tuple[str, int]]:
    """Download them for Python 3.12 on x86-64 Linux into `folder`, whose other wheels are removed. (file name, bytes) of each.

    WheelsError, DownloadError.
    """
    wanted = pinned(lock.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    pip_download.download(folder, wanted, "--quiet", "--implementation", "cp", "--python-version", PYTHON, *platforms)
    found = [(wheel.name, wheel.stat().st_size) for wheel in sorted(folder.glob("*.whl"))]
    check_size(found)
    return found


def check_size(found: list[tuple[str, int]]) -> None:
    """WheelsError if all of them together are too large."""
    total = sum(size for _, size in found)
    if total > MAX_BYTES:
        raise WheelsError(f"the wheels have {total:,} bytes, at most {MAX_BYTES:,} may travel; take some out of NAMES")


def unpack(folder: Path | None, site: Path) -> int:
    """Make a folder for PYTHONPATH out of the wheels; how many there were. None of these has files outside of its packages."""
    found = sorted(folder.glob("*.whl")) if folder else []
    for wheel in found:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    return len(found)
