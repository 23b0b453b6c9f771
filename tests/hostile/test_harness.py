"""The attacked nodes serve what transformers answers.

Without this, an attack that fails shows nothing.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from swarm.client import SwarmModelForCausalLM
from tests.hostile.conftest import Start


def test_two_nodes_answer_as_one_machine(start_node: Start, checkpoint: Path, alone: Any) -> None:
    first = start_node("harness-a", "0:3")
    second = start_node("harness-b", "3:6", peers=(first,))
    ids = torch.randint(3, 256, (1, 9), generator=torch.Generator().manual_seed(1))
    greedy: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with SwarmModelForCausalLM.from_pretrained(checkpoint, peers=[first.said["multiaddr"]]) as model:
        assert model.generate(ids, **greedy).tolist() == alone.generate(ids, **greedy).tolist()
    for node in (second, first):
        assert node.end(signal.SIGTERM) == 0
