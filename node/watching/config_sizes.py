"""Counts how large a model's blocks are by its config alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from node.watching.what_if import Sizes
from protocols.errors import CheckpointError, DeadlineError, from_wire
from swarm import helper_process
from swarm.checkpoints.bounds import read_config

COUNT_S = 60.0
"""Seconds for a process that imports transformers and counts; 8 s on a quiet machine."""


def of_config(directory: Path, name: str) -> Sizes:
    """Of the model that `config.json` in this directory describes; blocks for some seconds.

    CheckpointError or ModelNotSupportedError: the config is refused; DeadlineError: it takes too long to count.
    """
    found = _asked(json.dumps(read_config(directory / "config.json")).encode())
    if "code" in found:
        raise from_wire(found["code"], found["error"])
    return Sizes(name=name, num_blocks=int(found["num_blocks"]), block_bytes=int(found["block_bytes"]))


def _asked(config: bytes) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    with helper_process.start("swarm.models.config_sizes_main", environment=environment) as process:
        try:
            answer, _ = process.communicate(config, timeout=COUNT_S)
        except subprocess.TimeoutExpired:
            raise DeadlineError(
                f"the blocks of this config could not be counted within {COUNT_S:.0f} s: give a size instead"
            ) from None
        finally:
            process.kill()
    try:
        found: dict[str, Any] = json.loads(answer)
    except ValueError:
        raise CheckpointError("the blocks of this config cannot be counted: give a size instead") from None
    return found
