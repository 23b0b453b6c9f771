"""Checks of the machine itself: software, device, memory, disk, ports.

Each takes what it judges as arguments, so that a test can pass a machine that it does not have.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from node import hardware
from node.doctor.check import Check, failed, ok, skipped, warning
from protocols.errors import ConfigError
from swarm import descriptors
from swarm.peer import ports

OLDEST_PYTHON = (3, 11)

LOW_MEMORY_BYTES = 2 << 30
"""Less than this beside the imports, and only small models fit."""

LOW_DISK_BYTES = 10_000_000_000
"""Less than this, and a few blocks of a large model fill the disk."""

LOW_DESCRIPTORS = 4_096
"""Files and connections: a node with many peers needs one for each."""

EXTRAS = {
    "lan": "neighbours on the local network are not found",
    "gguf": "GGUF files cannot be read",
    "train": "`swarm train` writes no plots",
}
"""What is missing without an extra."""

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
LOCAL = ("127.0.0.1", "localhost")


def python(version: tuple[int, ...] = sys.version_info[:3], platform: str = sys.platform) -> Check:
    """Is the interpreter new enough, and the system one that nodes run on?"""
    found = f"Python {'.'.join(map(str, version))} on {platform}"
    if version[:2] < OLDEST_PYTHON:
        return failed("python", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer, then run scripts/setup")
    if platform != "linux":
        return failed("python", found, "use Linux (a virtual machine will do): the DHT's daemon is built for it only")
    return ok("python", found)


def packages(requirements: Iterable[str] | None = None) -> Check:
    """Do the installed packages fit what this program needs? requirements: as in a wheel's metadata; None = ours."""
    try:
        wanted = [
            Requirement(text) for text in (metadata.requires("murmuration") if requirements is None else requirements) or ()
        ]
        found = f"murmuration {metadata.version('murmuration')}"
    except metadata.PackageNotFoundError:
        return failed("packages", "murmuration is not installed", "run scripts/setup, or pip install . in the checkout")
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [text for one in needed if (text := _unfit(one))]
    if wrong:
        return failed("packages", f"{found}; {'; '.join(wrong)}", "run scripts/setup, or pip install . in the checkout")
    return ok("packages", f"{found} and the {len(needed)} packages that it needs")


def _unfit(one: Requirement) -> str:
    """What is wrong with an installed package; empty if it fits."""
    try:
        version = metadata.version(one.name)
    except metadata.PackageNotFoundError:
        return f"{one.name} is missing, expected {one.specifier or 'any version'}"
    is_fit = one.specifier.contains(version, prereleases=True)
    return "" if is_fit else f"{one.name} is {version}, expected {one.specifier}"


def extras(requirements: Iterable[str] | None = None) -> Check:
    """Which parts that may be left out are installed?"""
    try:
        wanted = [
            Requirement(text) for text in (metadata.requires("murmuration") if requirements is None else requirements) or ()
        ]
    except metadata.PackageNotFoundError:
        return skipped("extras", "murmuration is not installed")
    without = []
    for extra in EXTRAS:
        own = [
            one
            for one in wanted
            if one.marker and not one.marker.evaluate({"extra": ""}) and one.marker.evaluate({"extra": extra})
        ]
        if any(_unfit(one) for one in own):
            without.append(extra)
    if not without:
        return ok("extras", f"{', '.join(EXTRAS)} are installed")
    lacks = "; ".join(f"without {extra}, {EXTRAS[extra]}" for extra in without)
    return warning("extras", lacks, f"run scripts/setup, or pip install '.[{','.join(without)}]' in the checkout")


def device(wanted: str, dev: Path = Path("/dev")) -> list[Check]:
    """Can torch compute here, on which device, and in which formats is that fast? Imports torch."""
    try:
        import torch
    except (ImportError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        return [failed("torch", f"it cannot be loaded: {text}", "run scripts/setup; without torch only --thin clients work")]
    checks = [ok("torch", f"torch {torch.__version__}, {torch.get_num_threads()} threads")]
    try:
        name = hardware.pick_device(wanted)
        formats = _formats(name)
    except (ConfigError, RuntimeError) as error:
        fix = "give a device that is named there, or update the driver of the card; --device cpu always works"
        return [*checks, failed("device", " ".join(str(error).split())[:300], fix)]
    free = f"{hardware.room_bytes(name) / 1e9:.1f} GB free for blocks"
    title = f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name
    found = f"{title}, {free}; {formats}"
    if name == "cpu" and wanted == "auto" and (card := _idle_card(dev)):
        return [*checks, warning("device", f"{found}; {card} is not used", _card_fix(card))]
    return [*checks, ok("device", found)]


def _formats(name: str) -> str:
    """How fast a multiplication of two matrices is in each format."""
    seconds = {dtype: hardware.matmul_s(dtype, name) for dtype in ("float32", "bfloat16")}
    size = hardware.MATMUL_SIZE["cpu" if name == "cpu" else "accelerator"]
    return ", ".join(f"{dtype} {2 * size**3 / took_s / 1e9:,.0f} GFLOP/s" for dtype, took_s in seconds.items())


def _idle_card(dev: Path) -> str:
    """A card that the system has; empty if there is none."""
    if (dev / "nvidia0").exists():
        return "an NVIDIA card"
    return "an AMD card" if (dev / "kfd").exists() else ""


def _card_fix(card: str) -> str:
    kind = "CUDA" if "NVIDIA" in card else "ROCm"
    return f"install torch's build with {kind} (https://pytorch.org/get-started/locally), and a driver that fits it"


def memory(free_bytes: int | None = None) -> Check:
    """Do blocks fit beside the imports?"""
    free = hardware.free_memory_bytes() if free_bytes is None else free_bytes
    found = f"{free / 1e9:.1f} GB free"
    if free < hardware.IMPORTS_BYTES:
        return failed("memory", found, "end other programs, or raise this container's limit: 0.5 GB are the least")
    if free < LOW_MEMORY_BYTES:
        return warning("memory", found, "end other programs, or host few blocks (--num-blocks): large models do not fit")
    return ok("memory", found)


def disk(data_dir: Path, free_bytes: int | None = None) -> Check:
    """Can the data directory be written, and is there space for weights?"""
    place = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{data_dir} cannot be written: {error.strerror or error}"
        return failed("disk", found, "give --data-dir with a directory of your own, or change the owner of this one")
    free = shutil.disk_usage(place).free if free_bytes is None else free_bytes
    found = f"{free / 1e9:.1f} GB free for {data_dir}"
    if free < LOW_DISK_BYTES:
        return warning("disk", found, "swarm cache prune removes old models; --data-dir chooses a larger disk")
    return ok("disk", found)


def files(limit: int | None = None) -> Check:
    """May this process open enough files and connections?"""
    most = descriptors.raise_limit() if limit is None else limit
    found = f"{most:,} may be open at once"
    if most < LOW_DESCRIPTORS:
        return warning("files", found, f"raise the limit: ulimit -Hn {LOW_DESCRIPTORS}, or LimitNOFILE= of the systemd unit")
    return ok("files", found)


def listen(host: str, port: int) -> Check:
    """Are two neighbouring ports free, as a node needs them?"""
    try:
        found = ports.pair(host, port)
    except ConfigError as error:
        what, _, fix = str(error).partition("; ")
        return failed("ports", what, fix or "give --listen HOST:PORT with another port")
    return ok("ports", f"{found} and {found + 1} at {host} are free")


def proxies(environment: Mapping[str, str] = os.environ) -> Check:
    """Would a proxy stand between programs of this machine and its own gateway?"""
    lower = {name.lower(): value for name, value in environment.items() if value}
    named = [name for name in PROXIES if name in lower]
    if not named:
        return ok("proxies", "none is set")
    spared = [part.strip() for part in lower.get("no_proxy", "").split(",")]
    found = f"{', '.join(named)} set; peers are dialled directly, only the Hub is asked by it"
    if "*" in spared or all(place in spared for place in LOCAL):
        return ok("proxies", found)
    return warning("proxies", f"{found}; programs would ask `swarm serve` by it, too", f"export NO_PROXY={','.join(LOCAL)}")
