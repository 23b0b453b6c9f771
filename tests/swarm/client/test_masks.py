"""Padding beside a window is exact; holes give a warning.

Masks of any number type mean the same, others are refused.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from protocols.errors import BadRequestError
from swarm.client import windows
from tests.logged import logged

IDS = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(6))
LEFT, RIGHT, HOLES = torch.ones_like(IDS), torch.ones_like(IDS), torch.ones_like(IDS)
LEFT[0, :5] = RIGHT[0, -5:] = HOLES[0, 8:12] = 0
FAMILIES = ["mistral", "gemma3_text", "gpt_oss", "qwen2", "gpt_neo", "llama4_text"]
"""Windows of 6 tokens in all blocks or in some, and chunked attention over 16."""


def both(theirs: Any, ours: Any, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    asked: dict[str, Any] = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=False)
    with torch.no_grad():
        return theirs(IDS, **asked).logits[mask.bool()], ours(IDS, **asked).logits[mask.bool()]


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_is_exact_and_a_hole_is_warned_of_once(
    family: str, pair: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours, _backend = pair(family)
    windows._warn.cache_clear()
    with caplog.at_level(logging.WARNING, logger=windows.log.name):
        for mask in (LEFT, RIGHT):
            expected, got = both(theirs, ours, mask)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not logged(caplog, windows.log)
        for _ in range(2):
            expected, got = both(theirs, ours, HOLES)
        assert float((got - expected).abs().max()) > 0.01  # what is warned of
    (said,) = logged(caplog, windows.log)
    windows._warn.cache_clear()
    cache = ours(IDS, attention_mask=RIGHT).past_key_values
    ours(IDS[:, :1], attention_mask=torch.cat([RIGHT, RIGHT[:, :1]], dim=1), past_key_values=cache)  # now it is a hole
    assert len(logged(caplog, windows.log)) == 2
    assert "padding between real tokens" in said and "pad on the left" in said


def test_nothing_is_said_where_a_hole_changes_nothing(pair: Callable[[str], Any], caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours, _backend = pair("llama")
    windows._warn.cache_clear()
    with caplog.at_level(logging.WARNING, logger=windows.log.name):
        expected, got = both(theirs, ours, HOLES)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not logged(caplog, windows.log)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.float32, torch.bfloat16], ids=str)
def test_a_mask_of_any_number_type_says_the_same(dtype: torch.dtype, pair: Callable[[str], Any]) -> None:
    _theirs, ours, _backend = pair("llama")
    asked: dict[str, Any] = dict(max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert (
        ours.generate(IDS, attention_mask=LEFT.to(dtype), **asked).tolist()
        == ours.generate(IDS, attention_mask=LEFT, **asked).tolist()
    )
    torch.testing.assert_close(ours(IDS, attention_mask=LEFT.to(dtype)).logits, ours(IDS, attention_mask=LEFT).logits)


def test_a_mask_to_be_added_to_scores_is_refused(pair: Callable[[str], Any]) -> None:
    """transformers takes its zeros, which mean "seen", for padding."""
    _theirs, ours, backend = pair("llama")
    added = torch.zeros(2, 20).masked_fill(LEFT.eq(0), float("-inf"))
    for call in (ours, ours.generate):
        with pytest.raises(BadRequestError, match="a mask to be added to scores"):
            call(IDS, attention_mask=added)
    assert backend.calls == []


@pytest.mark.parametrize("family", ["llama", "falcon_alibi", "gpt2", "opt", "bloom", "gptj"])
def test_a_hole_has_the_positions_that_transformers_gives_it(family: str, pair: Callable[[str], Any]) -> None:
    """No position_ids: transformers counts the hole's columns, also where padding on the right becomes a hole later."""
    theirs, ours, _backend = pair(family)
    answers = []
    with torch.no_grad():
        for model in (theirs, ours):
            at_once = model(IDS, attention_mask=HOLES, use_cache=False).logits[HOLES.bool()]
            cache = model(IDS[:, :18], attention_mask=RIGHT[:, :18]).past_key_values
            later = torch.cat([RIGHT[:, :18], torch.ones_like(IDS[:, 18:])], dim=1)
            answers.append([at_once, model(IDS[:, 18:], attention_mask=later, past_key_values=cache).logits])
    for expected, got in zip(*answers, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_cache_goes_on_with_its_own_model_only(pair: Callable[[str], Any]) -> None:
    _theirs, llama, _ = pair("llama")
    _theirs, mistral, backend = pair("mistral")
    cache = llama(IDS).past_key_values
    for go_on in (mistral, mistral.generate):
        with pytest.raises(BadRequestError, match=r"holds sequences of .*, but this model is "):
            go_on(IDS, past_key_values=cache)
    assert backend.calls == [] and not cache.is_closed
    llama(IDS[:, :1], past_key_values=copy.deepcopy(cache))
    llama(IDS[:, :1], past_key_values=cache)
