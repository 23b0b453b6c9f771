"""What a device can do: copy bandwidth, and matrix rate in bfloat16."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable
from typing import Any

from gpu.sizes import Sizes

ROUNDS = 5


def best_s(device: str, call: Callable[[], object], *, calls: int = 5, rounds: int = ROUNDS) -> float:
    """Seconds of one call: the best mean of `calls` consecutive ones, after one round that is not counted. The device is waited for."""
    import torch

    from node.hardware import wait_for

    times, where = [], torch.device(device)
    for _ in range(rounds + 1):
        wait_for(where)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        wait_for(where)
        times.append((time.perf_counter() - started) / calls)
    return min(times[1:])


def measure(device: str, sizes: Sizes) -> dict[str, Any]:
    """Section `ceilings`."""
    return {
        "machine": machine(device),
        "copy_bytes_per_s": round(copy_bytes_per_s(device, sizes.copied_bytes)),
        "matmul_flop_per_s": round(matmul_flop_per_s(device, sizes.matrix)),
    }


def copy_bytes_per_s(device: str, num_bytes: int) -> float:
    """Of a copy within the device's memory: bytes read and bytes written are both counted."""
    import torch

    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / best_s(device, lambda: target.copy_(source))


def matmul_flop_per_s(device: str, size: int) -> float:
    """Of square matrices of random bfloat16 values: zeros would run faster."""
    import torch

    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    result = torch.empty_like(left)
    return 2 * size**3 / best_s(device, lambda: torch.mm(left, right, out=result))


def machine(device: str) -> dict[str, Any]:
    """What was measured, for those who read the JSON later."""
    import torch

    from node import hardware

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "name": name,
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "room_bytes": hardware.room_bytes(device),
        **{package: importlib.metadata.version(package) for package in ("torch", "transformers", "tokenizers", "safetensors")},
    }
