"""The optimizer that a run's spec names."""

from __future__ import annotations

from node.training.optimizer.adamw import AdamW
from node.training.optimizer.interface import Optimizer
from node.training.optimizer.muon import Muon
from protocols.runs import OptimizerSpec


def make_optimizer(spec: OptimizerSpec) -> Optimizer:
    """An optimizer for all units of a run; it holds settings only, the state of a unit is its caller's."""
    adamw = AdamW(betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay)
    match spec.name:
        case "adamw":
            return adamw
        case "muon":
            return Muon(momentum=spec.momentum, others=adamw)
        case unknown:
            raise AssertionError(f"no such optimizer: {unknown!r}")
