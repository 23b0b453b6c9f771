"""Speculation takes one trip for each run and changes no token.

Over real gRPC; steps are counted at every hop.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from protocols.errors import BadRequestError
from tests.end_to_end.wire import WireSwarm
from tests.families import draw_weights, make_checkpoint
from tests.swarm.client.local_backend import local_model

REPETITIVE = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]])
NEW = 40
GREEDY: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=False, eos_token_id=None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("speculation"))


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture
def swarm(path: Path) -> Iterator[WireSwarm]:
    swarm = WireSwarm(path, [(0, 2), (2, 5), (2, 5)])
    try:
        yield swarm
    finally:
        swarm.close()


def steps_at_hops(swarm: WireSwarm) -> list[int]:
    """Steps that were computed at each of the two places of the route."""
    counts = [node.host.runner.num_steps for node in swarm.nodes]
    return [counts[0], counts[1] + counts[2]]


@pytest.mark.parametrize("who", ["the text", "a draft"])
def test_a_run_of_tokens_is_one_step_at_every_hop(who: str, swarm: WireSwarm, theirs: Any) -> None:
    """The draft is the model itself, so that its runs are right; the text's guesses are right and wrong."""
    guessing: dict[str, Any] = {"prompt_lookup_num_tokens": 6} if who == "the text" else {"assistant_model": theirs}
    cache = swarm.model(REPETITIVE[:, :-1], use_cache=True).past_key_values  # a hop may take a prompt in pieces
    before = steps_at_hops(swarm)
    got = swarm.model.generate(REPETITIVE, **GREEDY, **guessing, past_key_values=cache)
    runs = cache.trips - 1
    assert got.tolist() == theirs.generate(REPETITIVE, **GREEDY).tolist()
    assert [now - then for now, then in zip(steps_at_hops(swarm), before, strict=True)] == [runs, runs]
    assert runs < NEW if who == "the text" else runs <= NEW / 2  # the plain answer takes one for each token
    cache.close()


def test_an_answer_that_repeats_itself_takes_a_fraction_of_the_trips(path: Path, tmp_path: Path) -> None:
    """Weights that are nearly nothing, and a head that is the embedding, say the last token again and again."""
    dull = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    draw_weights(dull, 0.01)
    dull.lm_head.weight.data.copy_(dull.model.embed_tokens.weight)
    dull.save_pretrained(tmp_path)
    swarm = WireSwarm(tmp_path, [(0, 2), (2, 5)])
    try:
        cache = swarm.model.new_cache()
        got = swarm.model.generate(REPETITIVE, **GREEDY, prompt_lookup_num_tokens=8, past_key_values=cache)
        assert got.tolist() == dull.eval().generate(REPETITIVE, **GREEDY).tolist()
        assert cache.trips <= NEW / 4
        cache.close()
    finally:
        swarm.close()


def test_sampled_runs_are_those_of_transformers(swarm: WireSwarm, theirs: Any) -> None:
    sampled = GREEDY | dict(do_sample=True, temperature=0.7, top_k=8, prompt_lookup_num_tokens=4)
    answers = []
    for model in (theirs, swarm.model):
        torch.manual_seed(3)
        answers.append(model.generate(REPETITIVE, **sampled).tolist())
    assert answers[0] == answers[1]


def test_a_death_between_runs_changes_no_token(swarm: WireSwarm, theirs: Any) -> None:
    """What was guessed wrong has been taken back before the death: the replacement must not hear of it."""
    killed = []

    def kill(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] > REPETITIVE.shape[1] + 12 and not killed:
            killed.append(next(index for index in (1, 2) if swarm.nodes[index].engine.used_bytes))
            swarm.kill(killed[0])
        return torch.zeros(1, dtype=torch.bool)

    got = swarm.model.generate(REPETITIVE, **GREEDY, prompt_lookup_num_tokens=4, stopping_criteria=[kill])
    assert got.tolist() == theirs.generate(REPETITIVE, **GREEDY).tolist() and killed


@pytest.mark.parametrize("family", ["mamba2", "lfm2", "qwen3_next", "falcon_h1"])
def test_running_states_refuse_before_a_byte_is_sent(family: str, tmp_path: Path) -> None:
    """transformers would let lfm2 begin, and fail at the first wrong guess."""
    model, backend = local_model(make_checkpoint(family, tmp_path / family), 2)
    with pytest.raises(BadRequestError, match=r"running state.*without speculation"):
        model.generate(REPETITIVE, **GREEDY, prompt_lookup_num_tokens=4)
    assert backend.num_opened == 0
