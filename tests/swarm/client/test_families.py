"""Every family gives transformers' greedy tokens over uneven spans.

That is 64 tokens over 1, 2 and 3 spans, and each token costs one step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families import LISTED
from tests.swarm.client.local_backend import local_model

PROMPT = torch.randint(3, 250, (1, 11), generator=torch.Generator().manual_seed(3))
GREEDY: dict[str, Any] = dict(max_new_tokens=64, do_sample=False, eos_token_id=None)


def values_of(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@pytest.mark.parametrize("family", LISTED)
def test_greedy_equals_transformers_over_any_number_of_spans(
    family: str, checkpoint: Callable[[str], Path], reference: Callable[[str], Any]
) -> None:
    expected = reference(family).generate(PROMPT, **GREEDY)
    assert len(set(expected[0, 11:].tolist())) > 5, "a model that repeats one token proves nothing"
    for cuts in ((), (1,), (1, 3)):
        model, backend = local_model(checkpoint(family), *cuts)
        assert model.generate(PROMPT, **GREEDY).tolist() == expected.tolist(), f"spans cut at {cuts}"
        assert [sum(call.counts) for call in backend.calls] == [11] + [1] * 63  # keys and values were kept
        assert {call.want for call in backend.calls} == {1} and all(call.positions is None for call in backend.calls)
        assert backend.num_opened == backend.num_closed == 1


@pytest.mark.parametrize("family", LISTED)
def test_logits_and_last_hidden_state_equal_transformers(family: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    with torch.no_grad():
        expected = theirs(PROMPT, output_hidden_states=True)
    result = ours(PROMPT, output_hidden_states=True)
    torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.hidden_states[-1], expected.hidden_states[-1], rtol=1e-4, atol=1e-4)
    assert len(result.hidden_states) == len(expected.hidden_states) == 6
    assert len(backend.calls) == 1
    assert values_of(ours.config) == values_of(theirs.config)  # whole, although the modules inside have one block


@pytest.mark.parametrize("family", ["mpt", "llama4_text", "qwen3_next", "mamba2", "openai_gpt", "opt_projected", "granite"])
def test_other_families_work_without_a_word_about_them(family: str, pair: Callable[[str], Any]) -> None:
    """A forward that insists on a mask, chunked attention, running states, no cache at all, embeddings of another width."""
    theirs, ours, backend = pair(family)
    batch = torch.cat([PROMPT, PROMPT.roll(3, 1)])
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    for options in (dict(num_beams=2), dict(attention_mask=mask), dict(use_cache=False)):
        asked: dict[str, Any] = dict(max_new_tokens=10, do_sample=False, eos_token_id=None, **options)
        assert ours.generate(batch, **asked).tolist() == theirs.generate(batch, **asked).tolist(), options
    with torch.no_grad():
        expected = theirs(PROMPT, output_hidden_states=True)
    got = ours(PROMPT, output_hidden_states=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.hidden_states[-1], expected.hidden_states[-1], rtol=1e-4, atol=1e-4)
    assert backend.calls


BFLOAT16_BOUND = 0.03
"""Largest difference of logits, relative to the largest logit, for dense models: a router that sits on an edge may choose other experts.

Tokens are not promised at all: exact ties are common in bfloat16."""


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "gpt2"])
def test_bfloat16_logits_stay_within_the_stated_bound(family: str, checkpoint: Callable[[str], Path]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.bfloat16).eval()
    ours, _backend = local_model(checkpoint(family), 2, dtype=torch.bfloat16)
    tokens = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = theirs(tokens).logits.float()
    cache = ours.new_cache()
    pieces = [ours(piece, past_key_values=cache).logits.float() for piece in tokens.split([30] + [1] * 10, dim=1)]
    got = torch.cat(pieces, dim=1).detach()
    assert ours.dtype == torch.bfloat16
    error = float((got - expected).abs().max() / expected.abs().max())
    print(f"{family}: {error:.4f}")
    assert error < BFLOAT16_BOUND
