"""Decode, prefill and captured forwards, timed through a node's runner."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import spread

from gpu import blocks, ceilings
from gpu.sizes import Sizes

WARM_TOKENS = 4
"""Decoded by each session before the clock starts: the scheduler has then seen batches of this size."""

NO_CUDA_GRAPHS = (
    "no engine has CUDA graphs: `node/engines/graphs/engine_graphs.py` records the calls of a forward and replays them one by one"
)


# --- decode


def decode(device: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Section `decode`: one entry for each number of sessions."""
    loaded = blocks.load(device, sizes, folder)

    async def measure() -> list[dict[str, Any]]:
        async with blocks.serving(loaded) as serving:
            return [await _decode(serving, loaded, sizes, count) for count in sizes.sessions]

    return {"engine": loaded.engine.mode, "weight_bytes": loaded.weight_bytes, "rows": asyncio.run(measure())} | memory(device)


async def _decode(serving: blocks.Serving, loaded: blocks.Blocks, sizes: Sizes, count: int) -> dict[str, Any]:
    times, forwards = [], []
    for _ in range(sizes.repeats):
        chats = [await serving.open(sizes.prompt_tokens) for _ in range(count)]
        await asyncio.gather(*(chat.decode(WARM_TOKENS) for chat in chats))
        before, started = serving.runner.num_forwards, time.perf_counter()
        await asyncio.gather(*(chat.decode(sizes.new_tokens) for chat in chats))
        times.append((time.perf_counter() - started) / sizes.new_tokens)
        forwards.append((serving.runner.num_forwards - before) / sizes.new_tokens)
        await asyncio.gather(*(chat.close() for chat in chats))
    mean_tokens = sizes.prompt_tokens + WARM_TOKENS + (sizes.new_tokens + 1) / 2
    read_bytes = loaded.weight_bytes + count * mean_tokens * loaded.kv_bytes_per_token
    best_s = min(times)
    return {
        "sessions": count,
        "step_ms": milliseconds(times),
        "tokens_per_s": round(count / best_s, 1),
        "read_bytes": round(read_bytes),
        "bytes_per_s": round(read_bytes / best_s),
        "forwards_per_token": round(min(forwards), 2),
    }


# --- prefill


def prefill(device: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Section `prefill`: one prompt, alone."""
    loaded = blocks.load(device, sizes, folder)

    async def measure() -> tuple[list[float], int]:
        async with blocks.serving(loaded) as serving:
            times = []
            for repeat in range(sizes.repeats + 3):  # the scheduler sizes its pieces by what the last ones cost
                before, started = serving.runner.num_forwards, time.perf_counter()
                chat = await serving.open(sizes.prefill_tokens)
                if repeat >= 3:
                    times.append(time.perf_counter() - started)
                pieces = serving.runner.num_forwards - before
                await chat.close()
            return times, pieces

    times, pieces = asyncio.run(measure())
    flop = prefill_flop(sizes)
    return {
        "tokens": sizes.prefill_tokens,
        "ms": milliseconds(times),
        "tokens_per_s": round(sizes.prefill_tokens / min(times)),
        "flop": flop,
        "flop_per_s": round(flop / min(times)),
        "forwards": pieces,
    } | memory(device)


def prefill_flop(sizes: Sizes) -> int:
    """Multiplications and additions of the matrices, and of causal attention."""
    return block_flop(sizes, sizes.prefill_tokens)


def block_flop(sizes: Sizes, tokens: int) -> int:
    """Of one forward of a sequence through all blocks."""
    shape = sizes.shape
    return 2 * tokens * shape.block_values + 2 * tokens * tokens * shape.hidden * shape.blocks


# --- captured forwards


def graphs(device: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Section `graphs`: a decode of one sequence and of eight, by the model's own forward, and as the engine captures it."""
    loaded = blocks.load(device, sizes, folder)
    plain = {count: _step_s(loaded.engine, device, count, sizes) for count in (1, 8)}
    while loaded.engine.warm_up():
        pass
    played = loaded.engine._graphs.replayed
    captured = {count: _step_s(loaded.engine, device, count, sizes) for count in (1, 8)}
    rows = [
        {
            "sessions": count,
            "plain_ms": round(plain[count] * 1e3, 4),
            "captured_ms": round(captured[count] * 1e3, 4),
            "captured_times_faster": round(plain[count] / captured[count], 3),
            "cuda_graph_ms": None,
        }
        for count in plain
    ]
    return {
        "rows": rows,
        "cuda_graph_reason": NO_CUDA_GRAPHS,
        "replayed": loaded.engine._graphs.replayed - played,
        "refusal": loaded.engine._graphs.refusal,
    }


def _step_s(engine: Any, device: str, count: int, sizes: Sizes) -> float:
    """Seconds of a step that appends a token to each of `count` sequences."""
    import torch

    rows = [engine.open() for _ in range(count)]
    generator = torch.Generator().manual_seed(count)

    def noise(tokens: int) -> Any:
        return torch.randn(1, tokens, engine.hidden_size, generator=generator).to(engine.device, engine.dtype)

    for row in rows:
        engine.step([(row, sizes.prompt_tokens)], noise(sizes.prompt_tokens))
    hidden = noise(count)
    step: Callable[[], object] = lambda: engine.step([(row, 1) for row in rows], hidden)  # noqa: E731
    seconds = ceilings.best_s(device, step, calls=max(1, sizes.new_tokens // 4), rounds=sizes.repeats)
    for row in rows:
        engine.close(row)
    return seconds


# --- shared


def milliseconds(times_s: list[float]) -> dict[str, float]:
    return spread([seconds * 1e3 for seconds in times_s], digits=4)


def memory(device: str) -> dict[str, Any]:
    """The most memory that tensors took on the card; nothing on a CPU."""
    import torch

    return {"peak_bytes": torch.cuda.max_memory_allocated(device)} if device.startswith("cuda") else {}
