"""What this machine is, for people who look at its peer."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from node import hardware
from protocols.about import MAX_CORES, MAX_TEXT, Machine
from protocols.words import one_line

_ROOT = Path("/")


def machine_here(device: str, root: Path = _ROOT) -> Machine:
    """Reads files, and asks the driver of a card; takes some milliseconds. device: as `hardware.pick_device` has it."""
    is_card = device.startswith("cuda")
    return Machine(
        device=_short(device),
        name=_short(_card(device) if is_card else _processor(root)),
        system=_short(_system()),
        cores=min(MAX_CORES, _cores()),
        memory_bytes=hardware.total_memory_bytes(root),
        device_bytes=_card_bytes(device) if is_card else 0,
    )


def _short(text: str) -> str:
    return one_line(text).strip()[:MAX_TEXT]


def _system() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {_version('torch')}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "is not installed"


def _cores() -> int:
    """That this process may use: fewer than the machine has, in a container or under `taskset`."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def _processor(root: Path) -> str:
    """As its maker calls it; "" if the system does not say, as for ARM."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next((name for name in named if name), "")


def _card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def _card_bytes(device: str) -> int:
    import torch

    return int(torch.cuda.mem_get_info(device)[1])
