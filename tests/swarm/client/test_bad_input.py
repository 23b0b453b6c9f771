"""Wrong input gives one line before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from protocols.errors import BadRequestError
from swarm.client import checks
from swarm.client.connection import Settings

IDS = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(1))
ONES = torch.ones_like(IDS)
NEW = dict(max_new_tokens=4, do_sample=False)

FORWARDS: dict[str, tuple[dict[str, Any], str]] = {
    "an id too high": (dict(input_ids=IDS + 250), r"token id \d+ is out of range: this model has ids 0 to 255"),
    "an id below 0": (dict(input_ids=IDS - 300), "out of range"),
    "no ids at all": (dict(), "either input_ids or inputs_embeds"),
    "ids and embeddings": (dict(input_ids=IDS, inputs_embeds=torch.zeros(2, 6, 64)), "either input_ids or inputs_embeds"),
    "an empty prompt": (dict(input_ids=torch.zeros(1, 0)), "the prompt is empty"),
    "floats": (dict(input_ids=IDS.float()), "must be integers, got torch.float32"),
    "a list": (dict(input_ids=[[1, 2]]), "must be a tensor"),
    "one dimension": (dict(input_ids=IDS[0]), r"must be \[batch, tokens\]"),
    "too long": (
        dict(input_ids=IDS.repeat(1, 50)),
        "the prompt is too long: 300 tokens, this model's limit is 256; shorten it by 44",
    ),
    "too many sequences": (dict(input_ids=IDS[:1].repeat(1025, 1)), "1 to 1024 sequences"),
    "a mask of another batch size": (dict(input_ids=IDS, attention_mask=ONES[:1]), r"attention_mask must be \[2, 6\]"),
    "a mask that is too long": (dict(input_ids=IDS, attention_mask=torch.ones(2, 9)), r"attention_mask must be \[2, 6\]"),
    "a mask of four dimensions": (dict(input_ids=IDS, attention_mask=torch.ones(2, 1, 6, 6)), "take no other mask"),
    "positions of other columns": (dict(input_ids=IDS, position_ids=torch.zeros(1, 5).long()), "a column per new token"),
    "positions of three dimensions": (dict(input_ids=IDS, position_ids=torch.zeros(3, 2, 6).long()), "position_ids must be"),
    "negative positions": (dict(input_ids=IDS, position_ids=torch.full((1, 6), -2)), "must not be negative"),
    "attentions": (dict(input_ids=IDS, output_attentions=True), "attentions are not here"),
    "a local cache": (dict(input_ids=IDS, past_key_values=DynamicCache()), "DynamicCache, but keys and values stay at the hops"),
    "a gradient and a cache": (
        dict(inputs_embeds=torch.zeros(1, 2, 64, requires_grad=True), use_cache=True),
        "no gradient passes keys and values",
    ),
}

GENERATES: dict[str, tuple[dict[str, Any], str]] = {
    "too long": (dict(inputs=IDS.repeat(1, 50)), "the prompt is too long: 300 tokens"),
    "too much asked": (
        dict(inputs=IDS, max_new_tokens=252),
        r"6 tokens of prompt and 252 new ones exceed this model's limit of 256; ask for at most 251",
    ),
    "an empty prompt": (dict(inputs=torch.zeros(1, 0).long()), "the prompt is empty"),
    "an id out of range": (dict(inputs=IDS + 250), "out of range"),
    "a mask of another batch size": (dict(inputs=IDS, attention_mask=ONES[:1]), r"attention_mask must be \[2, 6\]"),
    "a sequence of padding only": (
        dict(inputs=IDS, attention_mask=ONES * torch.tensor([[1], [0]])),
        "sequence 1 of the prompt is empty",
    ),
    "a local cache": (dict(inputs=IDS, past_key_values=DynamicCache()), "model.new_cache"),
    "paged": (dict(inputs=IDS, cache_implementation="paged"), "leave it out"),
    "padding on the right, unsaid": (
        dict(inputs=IDS * torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6])),
        "sequence 0 ends in padding",
    ),
}


@pytest.mark.parametrize("case", FORWARDS)
def test_forward_refuses_before_anything_is_sent(case: str, pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    arguments, message = FORWARDS[case]
    with pytest.raises(BadRequestError, match=message) as caught:
        ours(**arguments)
    assert "\n" not in str(caught.value) and backend.calls == [] and backend.num_opened == 0


@pytest.mark.parametrize("case", GENERATES)
def test_generate_refuses_before_anything_is_sent(case: str, pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    arguments, message = GENERATES[case]
    with pytest.raises(BadRequestError, match=message) as caught:
        ours.generate(**{**NEW, **arguments})
    assert "\n" not in str(caught.value) and backend.calls == [] and backend.num_opened == 0


def test_the_longest_answer_that_fits_is_allowed(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("gpt2")
    prompt = IDS[:1].repeat(1, 42)
    options: dict[str, Any] = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert prompt.shape[1] == 252
    assert ours.generate(prompt, **options).tolist() == theirs.generate(prompt, **options).tolist()
    assert sum(sum(call.counts) for call in backend.calls) == 256


def test_a_cache_cannot_change_its_rows_or_its_padding(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])
    cache = ours(IDS, attention_mask=mask).past_key_values
    one = torch.ones(2, 1)
    with pytest.raises(BadRequestError, match="holds 2 sequences, but 1 came"):
        ours(IDS[:1, :1], past_key_values=cache)
    with pytest.raises(BadRequestError, match="have no attention_mask"):
        ours(IDS[:, :1], past_key_values=cache)
    with pytest.raises(BadRequestError, match="cannot change later"):
        ours(IDS[:, :1], past_key_values=cache, attention_mask=torch.cat([ONES, one], 1))
    with pytest.raises(BadRequestError, match="every sequence has"):
        cache.crop(-6)
    with pytest.raises(BadRequestError, match="do not fit"):
        cache.batch_select_indices(torch.tensor([2]))
    assert len(backend.calls) == 1
    ours(IDS[:, :1], past_key_values=cache, attention_mask=torch.cat([mask, one], 1))  # none of that did it any harm
    assert backend.calls[1].counts == (1, 1)
    cache.close()


def test_other_hidden_states_say_why_they_are_not_here(pair: Callable[[str], Any]) -> None:
    _theirs, ours, _backend = pair("llama")
    states = ours(IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert torch.equal(states[5], states[-1])
    for ask in (lambda: states[0], lambda: states[1:], lambda: list(states)):
        with pytest.raises(BadRequestError, match="no activation comes back"):
            ask()


def test_the_inner_model_is_not_called_alone(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    with pytest.raises(BadRequestError, match="call the model"):
        ours.model(IDS)
    assert backend.calls == []


def test_positions_travel_only_where_the_caller_set_others(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    usual = (mask.cumsum(1) - 1).clamp_min(0)
    for shift in (0, 7):
        with torch.no_grad():
            expected = theirs(IDS, attention_mask=mask, position_ids=usual * 2 + shift if shift else usual).logits
        got = ours(IDS, attention_mask=mask, position_ids=usual * 2 + shift if shift else usual, use_cache=False).logits
        torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
    assert backend.calls[0].positions is None
    assert backend.calls[1].positions == [7, 9, 11, 13, 7, 9, 11, 13, 15, 17]


@pytest.mark.parametrize(
    "mask", [[[1, 1, 1, 1, 0, 0], [1] * 6], [[1, 0, 1, 0, 1, 1], [0, 1, 1, 1, 1, 0]]], ids=["right", "holes"]
)
def test_logits_of_real_tokens_are_the_same_wherever_the_padding_is(mask: list[list[int]], pair: Callable[[str], Any]) -> None:
    """transformers gives a hole a position; sequences of real tokens do not, so both calls get the positions."""
    theirs, ours, backend = pair("gemma3_text")
    real = torch.tensor(mask)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    got = ours(IDS, attention_mask=real, position_ids=positions, use_cache=False).logits
    for row in range(2):
        with torch.no_grad():
            alone = theirs(IDS[row : row + 1][:, real[row].bool()]).logits
        torch.testing.assert_close(got[row][real[row].bool()], alone[0], rtol=1e-4, atol=1e-4)
    assert backend.calls[0].counts == tuple(real.sum(1).tolist()) and backend.calls[0].positions is None


def test_settings_of_from_pretrained() -> None:
    with pytest.raises(BadRequestError, match="dtype must be auto"):
        Settings(dtype="int4")
    with pytest.raises(BadRequestError, match="patience_s"):
        Settings(route_timeout_s=-1)
    assert Settings(dtype=torch.bfloat16).dtype is torch.bfloat16


def test_no_limit_means_no_limit() -> None:
    checks.check_length(10**9, None)
