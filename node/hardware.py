"""This machine: devices, free memory, and the fast number format.

Free memory honours every cgroup above us (v1 and v2), since the kernel kills at the cgroup's limit, not at the machine's.
Torch is imported inside the functions that need it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protocols.errors import ConfigError

if TYPE_CHECKING:
    import torch

IMPORTS_BYTES = 420_000_000
"""Resident memory after importing torch, transformers, grpc and hivemind (research/blocks.md, section 9)."""

ACCELERATOR_SHARE = 0.9
"""Share of an accelerator's free memory that we count on; the rest is its runtime's workspace."""

KV_SHARE = 0.8
"""Share of the memory left beside the weights that sessions may take; the rest is for activations."""

FAST_ENOUGH = 1.25
"""A smaller format may take this much longer than float32: it halves the memory that a decoded token reads."""

MATMUL_SIZE = {"cpu": 384, "accelerator": 2_048}
"""Width of the square matrices that number formats are timed with. An accelerator's time for small ones is all launch."""

_ROOT = Path("/")
_V1_LIMITS = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2_LIMITS = ("memory.max", "memory.current", "inactive_file")


# --- memory


def room_bytes(device: str, root: Path = _ROOT) -> int:
    """Bytes that weights, K/V and activations may take on `device`, whatever this process has imported so far.

    On a CPU the imports' share is kept back: what is free now plus what we hold now, less IMPORTS_BYTES. On a card, memory that torch
    keeps although no tensor uses it is free: a span that was given up leaves all of its memory there.
    """
    if device.startswith("cuda"):
        import torch

        free, _total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int((free + unused) * ACCELERATOR_SHARE)
    return max(0, free_memory_bytes(root) + min(resident_bytes(root), IMPORTS_BYTES) - IMPORTS_BYTES)


def free_memory_bytes(root: Path = _ROOT) -> int:
    """What can still be allocated: the machine's available memory, or less where a cgroup allows less."""
    return max(0, min([_available(root), *_cgroup_rooms(root)]))


def resident_bytes(root: Path = _ROOT) -> int:
    """Memory that this process holds; 0 where the system does not say."""
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def total_memory_bytes(root: Path = _ROOT) -> int:
    """The machine's memory, or less where a cgroup allows less; 0 where the system does not say."""
    limits = (limit for folder, names in _cgroups(root) if (limit := _limit_in(folder, names[0])) is not None)
    return max(0, min([_meminfo(root, "MemTotal") or 0, *limits]))


def _available(root: Path) -> int:
    """MemAvailable; half of the physical memory where there is no such file (macOS)."""
    found = _meminfo(root, "MemAvailable")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if found is None else found


def _meminfo(root: Path, name: str) -> int | None:
    """One line of /proc/meminfo in bytes; None where it is not."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _cgroup_rooms(root: Path) -> Iterator[int]:
    """Limit minus usage (page cache that can be dropped does not count) of each cgroup that we are in."""
    for folder, names in _cgroups(root):
        if (left := _room_in(folder, *names)) is not None:
            yield left


def _cgroups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folder of each cgroup that we are in, with the names of its files."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts: tuple[str, ...]
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts, names = ("sys/fs/cgroup", "sys/fs/cgroup/unified"), _V2_LIMITS
        elif "memory" in controllers.split(","):
            mounts, names = ("sys/fs/cgroup/memory",), _V1_LIMITS
        else:
            continue
        for mount in mounts:
            for folder in _upwards(root / mount, path):
                yield folder, names


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """The cgroup's folder and all above; in a container the path may be the host's, and only the mount exists."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _room_in(folder: Path, limit_file: str, usage_file: str, cache_field: str) -> int | None:
    """Bytes left in one cgroup; None where it has no limit."""
    limit = _limit_in(folder, limit_file)
    try:
        usage = int((folder / usage_file).read_text())
    except (OSError, ValueError):
        return None
    return None if limit is None else limit - usage + _field(folder / "memory.stat", cache_field)


def _limit_in(folder: Path, limit_file: str) -> int | None:
    """Bytes that one cgroup may have; None where it has no limit."""
    try:
        limit = (folder / limit_file).read_text().strip()
    except (OSError, ValueError):
        return None
    return int(limit) if limit.isdigit() and int(limit) < 1 << 60 else None  # "max", or v1's 2^63 less a page


def _field(file: Path, name: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)


# --- devices


def devices() -> tuple[str, ...]:
    """The devices that torch can compute on here, the fastest kind first."""
    import torch

    found = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return (*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu")


def pick_device(wanted: str) -> str:
    """`auto` is the best one; ConfigError names what there is."""
    found = devices()
    if wanted == "auto":
        return found[0]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in found:
        raise ConfigError(f"no device {wanted[:40]!r} here; there are: {', '.join(found)}; give one of them, or --device auto")
    return name


def wait_for(device: torch.device) -> None:
    """Until it has done all that it was asked for: an accelerator's calls return before their work is done. CPUs have done it."""
    if device.type not in ("cpu", "meta"):
        import torch

        torch.accelerator.synchronize(device)


# --- number formats


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """A number format (`float32`, `bfloat16` or `float16`), and why."""

    name: str
    reason: str


def pick_dtype(
    wanted: str, stored: str, device: str, *, served: str | None = None, measure: Callable[[str, str], float] | None = None
) -> DtypeChoice:
    """The format to compute in.

    stored: the checkpoint's own format; served: what most nodes of this model compute in, if there are any: a route
    uses one format, so joining them counts for more than speed. Otherwise the stored one, unless it is slow here:
    bfloat16 on a CPU without its instructions takes five times as long as float32.
    """
    if wanted != "auto":
        return DtypeChoice(wanted, "as asked")
    if served is not None:
        return DtypeChoice(served, "as the swarm's other nodes, since a route has one format")
    if stored not in ("bfloat16", "float16"):
        return DtypeChoice("float32", f"the checkpoint is {stored}")
    time_of = measure or matmul_s
    ratio = time_of(stored, device) / time_of("float32", device)
    said = f"a {stored} matmul takes {ratio:.2f} times as long as float32 on {device}"
    return DtypeChoice(stored if ratio <= FAST_ENOUGH else "float32", said)


def matmul_s(dtype: str, device: str, size: int | None = None, rounds: int = 3) -> float:
    """Seconds of one square matmul, the best of some, after one to warm up. size: None = `MATMUL_SIZE` of this kind of device."""
    import torch

    size = size or MATMUL_SIZE["cpu" if device == "cpu" else "accelerator"]
    a_SS = torch.ones(size, size, dtype=torch_dtype(dtype), device=device)
    times = []
    for _round in range(rounds + 1):
        start = time.perf_counter()
        float((a_SS @ a_SS)[0, 0])  # reading a value waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


def torch_dtype(name: str) -> torch.dtype:
    """`bfloat16` -> torch.bfloat16; ConfigError for a name that is no float format."""
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"no float format is called {name[:40]!r}; expected float32, bfloat16 or float16")
    return found
