"""Each listed family gives transformers' tokens over real gRPC and batching."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.end_to_end.wire import WireSwarm
from tests.families import LISTED, make_checkpoint

NUM_TOKENS = 64
BATCHED_TOKENS = 32
"""Of each of eight sessions. Every family's 64 tokens are compared in `tests/swarm/client/test_families.py`."""
SPANS = {1: [(0, 5)], 2: [(0, 2), (2, 5)], 3: [(0, 1), (1, 4), (4, 5)]}


def greedy(model: Any, ids: torch.Tensor, num_tokens: int = NUM_TOKENS, **settings: Any) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, **settings)  # type: ignore[no-any-return]


@torch.no_grad()
def is_greedy(model: Any, answer: torch.Tensor, prompt: torch.Tensor, num_tokens: int = NUM_TOKENS) -> bool:
    """Whether `answer` is what `greedy` says: each token is the likeliest after those before it, without a cache, in one forward."""
    start = prompt.shape[1]
    logits = model(answer[:, :-1], use_cache=False).logits[:, start - 1 :]
    logits[..., model.generation_config.eos_token_id] = -torch.inf  # `min_new_tokens`: no answer ends early
    expected = torch.cat([prompt, logits.argmax(-1)], 1)
    return answer.shape == (1, start + num_tokens) and torch.equal(answer, expected)


@pytest.mark.parametrize("family", sorted(LISTED))
def test_a_family_over_the_wire_with_eight_sessions_batched_and_the_prompt_in_chunks(family: str, tmp_path: Path) -> None:
    """Eight prompts of different lengths at once over uneven spans; the longest prompts travel in several prefill chunks."""
    path = make_checkpoint(family, tmp_path / family, shard="100KB")
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    swarm = WireSwarm(path, SPANS[2], chunk_tokens=8)
    torch.manual_seed(5)
    prompts = [torch.randint(3, 256, (1, 3 + 4 * index)) for index in range(8)]
    answers: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=index: answers.__setitem__(i, greedy(swarm.model, prompts[i], BATCHED_TOKENS)))
        for index in range(8)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for index, prompt in enumerate(prompts):
            assert is_greedy(theirs, answers[index], prompt, BATCHED_TOKENS), f"session {index} of {family}"
        if swarm.nodes[0].engine.mode != "serial":
            for node in swarm.nodes:
                runner = node.host.runner
                assert runner.largest_batch > 1 and runner.num_forwards < runner.num_steps, "sessions never shared a forward"
    finally:
        swarm.close()


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mixtral", "deepseek_v3", "gpt_oss"])
def test_one_and_three_nodes(family: str, tmp_path: Path) -> None:
    """Every family over one and three spans is in `tests/swarm/client/test_families.py`; over the wire, one of each kind of attention."""
    path = make_checkpoint(family, tmp_path / family)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = torch.randint(3, 256, (1, 12))
    expected = greedy(theirs, prompt)
    assert is_greedy(theirs, expected, prompt)
    wrong = expected.clone()
    wrong[0, 40] = (wrong[0, 40] + 1) % 256
    assert not is_greedy(theirs, wrong, prompt)  # so that the test above can fail
    for num_nodes in (1, 3):
        swarm = WireSwarm(path, SPANS[num_nodes])
        try:
            assert torch.equal(greedy(swarm.model, prompt), expected), f"{num_nodes} nodes"
        finally:
            swarm.close()


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_death_under_beams_of_a_padded_batch_changes_nothing(family: str, tmp_path: Path) -> None:
    path = make_checkpoint(family, tmp_path / family)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    swarm = WireSwarm(path, [*SPANS[2], (2, 5)])
    ids, mask = torch.randint(3, 256, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    settings = {"attention_mask": mask, "num_beams": 3, "num_return_sequences": 2}
    killer = _KillAfter(9, swarm)
    try:
        ours = greedy(swarm.model, ids, 24, **settings, stopping_criteria=[killer])
        assert torch.equal(ours, greedy(theirs, ids, 24, **settings))
        assert killer.has_killed
    finally:
        swarm.close()


class _KillAfter:
    """A stopping criterion that never stops, but kills whichever of some replicas serves the session after some tokens."""

    def __init__(self, num_calls: int, swarm: WireSwarm, replicas: tuple[int, int] = (1, 2)) -> None:
        self._left, self._swarm, self._replicas, self.has_killed = num_calls, swarm, replicas, False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._left -= 1
        if self._left == 0:
            busy = [index for index in self._replicas if self._swarm.nodes[index].engine.used_bytes]
            self._swarm.kill(busy[0])
            self.has_killed = True
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)
