"""Prints torch's instruction set and digests of both optimizers' states."""

from __future__ import annotations

import hashlib

import torch

from node.training.optimizer.choice import make_optimizer
from protocols.runs import OptimizerSpec
from protocols.units import Blocks
from tests.node.training.optimizer.gradients import gradients, parameters


def digest(name: str, versions: int = 20) -> str:
    """Of parameters and state. Muon's updates are put in from outside, as in a group: what computes them is not bit-equal."""
    optimizer, values = make_optimizer(OptimizerSpec(name=name)), parameters()
    state = optimizer.new_state(values, Blocks(3, 4))
    for version in range(versions):
        mean = gradients(version)
        [names] = optimizer.assignments(state, 1)
        optimizer.apply(values, state, mean, version, 1e-2 / (version + 1), {each: mean[each] for each in names})
    digest = hashlib.sha256()
    for key, tensor in sorted({**values, **state}.items()):
        digest.update(key.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def report() -> list[str]:
    """Instruction set, AdamW's digest, Muon's."""
    return [torch.backends.cpu.get_cpu_capability(), digest("adamw"), digest("muon")]


if __name__ == "__main__":
    print(*report(), sep="\n")
