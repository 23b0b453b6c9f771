"""Every promised family: 64 greedy tokens over 1, 2 and 3 uneven spans equal transformers' own, and each token costs one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import LISTED
from tests.swarm.client.local_backend import local_model

PROMPT = torch.randint(3, 250, (1, 11), generator=torch.Generator().manual_seed(3))
GREEDY: dict[str, Any] = dict(max_new_tokens=64, do_sample=False, eos_token_id=None)


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
