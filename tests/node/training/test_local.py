"""A local run equals a plain torch loop over the whole model."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from node.training.data.micro_batch import NO_TARGET, MicroBatch
from node.training.optimizer.kinds import gets_weight_decay
from protocols.runs import OptimizerSpec, RunSpec
from swarm.models.checkpoint import open_checkpoint
from swarm.models.storing import stored_tensors
from swarm.training.snapshot import PARAMETER
from tests.families import write_checkpoint
from tests.node.training.learning import Counting, T, local_run, spec_of, worst
from tests.node.training.optimizer.test_muon import plain_newton_schulz

STEPS = 12


def llama(folder: Path, *, is_tied: bool) -> Path:
    return write_checkpoint(transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=is_tied, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    ), folder)  # fmt: skip


def plain(folder: Path, spec: RunSpec, batches: Counting) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and parameters by torch's own operations; packed sequences are computed document by document."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    named = dict(model.named_parameters())
    decays = {name for name, one in named.items() if gets_weight_decay(name, one.shape)}
    own = spec.optimizer
    matrices = [name for name in decays if own.name == "muon" and ".layers." in name]
    rest = [name for name in named if name not in matrices]
    optimizer = torch.optim.AdamW(
        [{"params": [named[name] for name in rest if (name in decays) is is_decayed], "weight_decay": own.weight_decay * is_decayed}
         for is_decayed in (True, False)], lr=own.lr, betas=own.betas, eps=own.eps,
    )  # fmt: skip
    momenta = {name: torch.zeros_like(named[name], dtype=torch.float64) for name in matrices}
    losses = []
    for version in range(STEPS):
        model.zero_grad()
        total, count = 0.0, 0
        for index in range(spec.num_micro_batches):
            one = batches.micro_batch(version, index)
            for start, stop in ((0, 6), (6, T)) if batches.is_packed else ((0, T),):
                ids, labels = torch.from_numpy(one.ids[:, start:stop]).long(), torch.from_numpy(one.labels[:, start:stop]).long()
                logits = model(input_ids=ids).logits
                loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET, reduction="sum")
                loss.backward()
                total += float(loss.detach())
            count += one.num_targets
        losses.append(total / count)
        _clip(named, count, own.clip / math.sqrt(3))  # two blocks, and embedding with head
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(spec, version)
        optimizer.step()
        for name in matrices:
            _step_by_muon(named[name], momenta[name], _learning_rate(spec, version), own)
    return losses, {name: one.detach() for name, one in named.items()}


@torch.no_grad()
def _step_by_muon(matrix: torch.Tensor, momentum: torch.Tensor, lr: float, own: OptimizerSpec) -> None:
    """In float64, by the definition; the momentum sums, which has the direction of one that averages."""
    assert matrix.grad is not None
    mean = matrix.grad.double()
    momentum.mul_(own.momentum).add_(mean)
    update = plain_newton_schulz(mean + own.momentum * momentum)
    matrix.mul_(1 - lr * own.weight_decay).sub_(lr * 0.2 * math.sqrt(max(matrix.shape)) * update)


def _clip(named: dict[str, Any], count: int, limit: float) -> None:
    units: dict[str, list[Any]] = {}
    for name, one in named.items():
        one.grad /= count
        units.setdefault(name.split(".")[2] if ".layers." in name else "ends", []).append(one)
    assert len(units) == 3
    for parameters in units.values():
        torch.nn.utils.clip_grad_norm_(parameters, limit)


def _learning_rate(spec: RunSpec, version: int) -> float:
    warmup, steps, final = spec.schedule.warmup_steps, spec.batch.steps, spec.schedule.final_share
    if version + 1 < warmup:
        return spec.optimizer.lr * (version + 1) / warmup
    height = 0.5 * (1 + math.cos(math.pi * (version + 1 - warmup) / (steps - warmup)))
    return spec.optimizer.lr * (final + (1 - final) * height)


@pytest.mark.parametrize(
    ("is_tied", "is_packed", "optimizer"), [(False, True, "adamw"), (True, True, "muon"), (False, False, "adamw")]
)
def test_a_local_run_is_a_plain_loop_over_the_whole_model(is_tied: bool, is_packed: bool, optimizer: str, tmp_path: Path) -> None:
    """Muon's embedding and head, here tied, go by AdamW."""
    folder, spec, batches = llama(tmp_path, is_tied=is_tied), spec_of(STEPS, optimizer), Counting(is_packed=is_packed)
    losses, parameters = plain(folder, spec, batches)
    run = local_run(folder, spec, batches)
    steps = [run.step() for _ in range(STEPS)]
    difference = worst([step.loss_sum / step.num_targets for step in steps], losses)
    print("losses", losses[0], losses[-1], "differ by", difference)
    assert difference < 1e-5 and losses[-1] < losses[0]
    config, compared = open_checkpoint(folder).config, 0
    for unit in run.units.states:
        stored = stored_tensors(config, unit, run.units.snapshot(unit).kind(PARAMETER))
        for name in stored.keys() & parameters.keys():
            off = torch.linalg.vector_norm(stored[name] - parameters[name]) / torch.linalg.vector_norm(parameters[name])
            assert off < 1e-5, f"{name} is off by {float(off):.1e}"
            compared += 1
    assert compared == len(parameters)


class Prompts(Counting):
    """No token is a target, as if a chat's prompts filled all sequences."""

    def micro_batch(self, version: int, index: int) -> MicroBatch:
        own = super().micro_batch(version, index)
        return dataclasses.replace(own, labels=np.full_like(own.labels, NO_TARGET), num_targets=0)


def test_a_batch_without_targets_is_a_step_without_a_gradient(tmp_path: Path) -> None:
    run = local_run(llama(tmp_path, is_tied=False), spec_of(STEPS), Prompts())
    step = run.step()
    assert (step.version, step.loss_sum, step.num_targets, step.grad_norm) == (1, 0.0, 0, 0.0)
