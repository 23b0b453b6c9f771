"""The process that counts a model's blocks by its config.

`node/watching/config_sizes.py` writes a `config.json` to its stdin and reads one line of JSON: `num_blocks` and `block_bytes`, or `code`
and `error`. Nothing takes memory but transformers itself: the model is made without tensors' values.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import torch
from torch import nn

from protocols.errors import SwarmError, to_wire
from swarm import helper_process
from swarm.models.config import config_from_json
from swarm.models.skeleton import locate, whole_model

CPU_S = 60
"""Seconds of a core; a model of 10,000 blocks takes longer."""


def main() -> None:
    """Answer once, and end."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    answers = helper_process.answers()
    answers.write(json.dumps(answered(json.loads(sys.stdin.buffer.read()))).encode() + b"\n")
    answers.flush()


def answered(raw: dict[str, Any]) -> dict[str, Any]:
    """Of one config."""
    try:
        config = config_from_json(raw, "config.json")
        location = locate(whole_model(config))
    except SwarmError as error:
        code, message = to_wire(error)
        return {"code": code, "error": message}
    width = _bytes_each(raw)
    return {
        "num_blocks": location.num_blocks,
        "block_bytes": max((_num_values(block) * width for block in location.blocks), default=0),
    }


def _num_values(block: nn.Module) -> int:
    return sum(parameter.numel() for parameter in block.parameters())


def _bytes_each(raw: dict[str, Any]) -> int:
    """Of the format in which the checkpoint says that it is stored; float32 if it does not."""
    text = raw.get("text_config")
    said = [table.get(key) for table in (raw, text if isinstance(text, dict) else {}) for key in ("dtype", "torch_dtype")]
    named = next((name for name in said if isinstance(name, str)), "float32")
    found = getattr(torch, named, torch.float32)
    return found.itemsize if isinstance(found, torch.dtype) else 4
