"""Copies of `past_key_values` are forks, as in transformers.

Both continue and end independently.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from protocols.errors import BadRequestError

SHARED = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(31))
FIRST, SECOND = (torch.randint(3, 250, (2, size), generator=torch.Generator().manual_seed(size)) for size in (4, 6))
GREEDY: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


def prefilled(model: Any, cache: Any, ids: Tensor = SHARED) -> Any:
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache


def continuation(model: Any, cache: Any, new: Tensor) -> list[list[int]]:
    found: list[list[int]] = model.generate(torch.cat([SHARED, new], 1), past_key_values=cache, **GREEDY).tolist()
    return found


@pytest.mark.parametrize("family", ["llama", "bloom", "qwen3_next"])
def test_a_copy_and_its_original_go_on_as_those_of_transformers_do(pair: Callable[[str], Any], family: str) -> None:
    theirs, ours, backend = pair(family)
    own, original = prefilled(ours, ours.new_cache()), prefilled(theirs, DynamicCache(config=theirs.config))
    fed = sum(sum(call.counts) for call in backend.calls)
    own_copy, copied = copy.deepcopy(own), copy.deepcopy(original)
    assert continuation(ours, own_copy, FIRST) == continuation(theirs, copied, FIRST)
    assert continuation(ours, own, SECOND) == continuation(theirs, original, SECOND)
    last = SECOND[:, -1:]
    for mine, other in ((own_copy, copied), (own, original)):
        with torch.no_grad():
            difference = ours(last, past_key_values=mine).logits - theirs(last, past_key_values=other).logits
        assert difference.abs().max() < 1e-4 and mine.get_seq_length() == other.get_seq_length()
    assert fed == SHARED.numel()  # the shared prompt was sent once
    assert sum(sum(call.counts) for call in backend.calls) == fed + 2 * (4 + 5) + 2 * (6 + 5) + 4


def test_what_waits_for_the_next_step_waits_in_the_copy_as_well(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    own, original = prefilled(ours, ours.new_cache()), prefilled(theirs, DynamicCache(config=theirs.config))
    for cache in (own, original):
        cache.crop(-3)
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
    own_copy, copied = copy.deepcopy(own), copy.deepcopy(original)
    own.crop(-1)
    original.crop(-1)
    ids = FIRST[:1].expand(3, -1)
    with torch.no_grad():
        for mine, other in ((own, original), (own_copy, copied)):
            assert torch.allclose(ours(ids, past_key_values=mine).logits, theirs(ids, past_key_values=other).logits, atol=1e-4)
    assert (own.rows, own_copy.rows) == ([9] * 3, [10] * 3)


def test_each_frees_its_own_memory(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    cache = prefilled(ours, ours.new_cache())
    twin = copy.deepcopy(cache)
    del cache
    gc.collect()
    assert (backend.num_opened, backend.num_closed) == (2, 1) and backend.used_bytes > 0
    continuation(ours, twin, FIRST)
    twin.close()
    assert (backend.num_closed, backend.used_bytes) == (2, 0)
    with pytest.raises(BadRequestError, match="has ended"):
        ours(FIRST, past_key_values=copy.deepcopy(twin))


def test_a_copy_of_an_unused_cache_is_another_unused_cache(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    cache = ours.new_cache()
    twin = copy.copy(cache)
    prefilled(ours, cache, FIRST)
    assert twin.get_seq_length() == 0 and backend.num_opened == 1
    assert continuation(ours, twin, FIRST) == theirs.generate(torch.cat([SHARED, FIRST], 1), **GREEDY).tolist()


def test_copies_are_used_from_different_threads(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    cache = prefilled(ours, ours.new_cache())
    news = [FIRST.roll(shift, 1) for shift in range(4)]
    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(lambda new: continuation(ours, copy.deepcopy(cache), new), news))
    assert got == [theirs.generate(torch.cat([SHARED, new], 1), **GREEDY).tolist() for new in news]


def test_generate_without_a_prompt_goes_on_from_a_start_token(pair: Callable[[str], Any]) -> None:
    """transformers takes this only with the mask of all columns and of the start token; here that is what it means without one."""
    theirs, ours, _backend = pair("llama")
    mask = torch.ones(2, SHARED.shape[1] + 1, dtype=torch.long)
    expected = theirs.generate(None, past_key_values=prefilled(theirs, DynamicCache()), attention_mask=mask, **GREEDY).tolist()
    for more in ({"attention_mask": mask}, {}):
        assert ours.generate(None, past_key_values=prefilled(ours, ours.new_cache()), **more, **GREEDY).tolist() == expected
    padded = ours(SHARED, attention_mask=torch.tensor([[0] + [1] * 8, [1] * 9])).past_key_values
    with pytest.raises(BadRequestError, match="pass the attention_mask of all 9 columns and of the start token"):
        ours.generate(None, past_key_values=padded, **GREEDY)


def test_generate_without_ids_goes_on_from_embeddings(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    embeds = theirs.get_input_embeddings()(torch.cat([SHARED, FIRST], 1)).detach()
    given = {"inputs_embeds": embeds, "attention_mask": torch.ones(embeds.shape[:2], dtype=torch.long)}
    expected = theirs.generate(None, past_key_values=prefilled(theirs, DynamicCache()), **given, **GREEDY).tolist()
    cache = prefilled(ours, ours.new_cache())
    assert ours.generate(None, past_key_values=copy.deepcopy(cache), **given, **GREEDY).tolist() == expected
