"""Forward, backward, adding and step of a stage in training.

A stage in the middle of a model: hidden states and the gradient of its output come in, and its own gradients go into the sums of a node's
`TrainedStage`, index by index; then its units step as in a run. Matrices are multiplied in bfloat16, everything else is float32, and
the graph is kept: no forward is computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpu.sizes import Sizes
from gpu.speed import memory, milliseconds

T = TypeVar("T")

METHOD = (
    "share = flop / best time of forward and backward / flop/s of the card's bfloat16 matrices (ceilings); flop = 6 for each parameter and "
    "token, and 6 * tokens^2 * hidden for each block and sequence (causal attention); bfloat16 by autocast, parameters and sums float32"
)


def measure(device: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Section `training`: the checkpoint that `model` left in `folder`, as the stage of a run."""
    trained, units = stage_of(device, sizes, folder)
    times: dict[str, list[float]] = {"forward": [], "backward": [], "adding": [], "step": []}
    for repeat in range(sizes.repeats + 1):
        found = version(trained, units, device, sizes)
        for name, seconds in found.items():
            times[name] += [seconds] * bool(repeat)
    passes = [forward + backward for forward, backward in zip(times["forward"], times["backward"], strict=True)]
    flop = pass_flop(sizes)
    return {
        "tokens": sizes.train_sequences * sizes.train_tokens,
        **{f"{name}_ms": milliseconds(seconds) for name, seconds in times.items()},
        "pass_ms": milliseconds(passes),
        "flop": flop,
        "flop_per_s": round(flop / min(passes)),
        "versions": units.version,
        "method": METHOD,
    } | memory(device)


def stage_of(device: str, sizes: Sizes, folder: Path) -> tuple[Any, Any]:
    """A node's `TrainedStage` and `RunUnits` of all blocks."""
    import torch

    from node.device.thread import Device
    from node.training.run_units import RunUnits
    from node.training.stage import Stage
    from node.training.trained_stage import TrainedStage
    from protocols.ids import ModelId, Span
    from protocols.runs import BatchRule, DataRule, RunSpec
    from swarm.models.checkpoint import open_checkpoint
    from swarm.models.loading import load_parts

    checkpoint = open_checkpoint(folder / sizes.shape.name)
    parts = load_parts(checkpoint, Span(0, checkpoint.num_blocks), dtype=torch.float32, device=device)[1]
    stage = Stage(parts, None, checkpoint.num_blocks, recompute="never", compute="bfloat16")
    batch = BatchRule(
        steps=100, batch_tokens=sizes.train_sequences * sizes.train_tokens, micro_batch_sequences=sizes.train_sequences
    )
    spec = RunSpec(name="gpu", data=DataRule(digest="da" * 32, sequence_tokens=sizes.train_tokens), batch=batch)
    run = ModelId("gpu", "ab" * 32)
    units = RunUnits(run, spec, stage, checkpoint.num_blocks, Device())
    return TrainedStage(run=run, stage=stage, states=units.states, spec=spec), units


def version(trained: Any, units: Any, device: str, sizes: Sizes) -> dict[str, float]:
    """Seconds of each part of a version of one micro-batch."""
    from node.training.accumulate import accumulate
    from protocols.parts_of_units import parts_of

    before, tokens = units.version, sizes.train_sequences * sizes.train_tokens
    hidden, of_output = _noise(device, sizes, 0, 1.0), _noise(device, sizes, 1, 1e-3)
    trained.check_open([part for unit in trained.states for part in parts_of(unit)], before)
    flight, forward_s = timed(device, lambda: trained.stage.forward(trained.stage.span, hidden))
    gradients, backward_s = timed(device, lambda: trained.stage.backward(flight, of_output))
    added, adding_s = timed(device, lambda: accumulate(trained.states, gradients, 0, tokens, version=before))
    norm, step_s = timed(device, lambda: units.step_alone(tokens))
    if len(added.added) != len(trained.states) or not 0 < norm < float("inf") or units.version != before + 1:
        raise ValueError(f"version {before}: {len(added.added)} units have the gradient, of norm {norm}; now {units.version}")
    return {"forward": forward_s, "backward": backward_s, "adding": adding_s, "step": step_s}


def _noise(device: str, sizes: Sizes, seed: int, deviation: float) -> Any:
    """[B, T, H], float32, the same at every call."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = sizes.train_sequences, sizes.train_tokens, sizes.shape.hidden
    return torch.randn(shape, generator=generator).mul_(deviation).to(device)


def timed(device: str, call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its seconds on a device that is waited for before and after."""
    import torch

    from node.hardware import wait_for

    wait_for(torch.device(device))
    started = time.perf_counter()
    result = call()
    wait_for(torch.device(device))
    return result, time.perf_counter() - started


def pass_flop(sizes: Sizes) -> int:
    """Multiplications and additions of one forward and backward: the backward has twice those of the forward."""
    from gpu.speed import block_flop

    return 3 * sizes.train_sequences * block_flop(sizes, sizes.train_tokens)
