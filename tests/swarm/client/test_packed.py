"""Packed sequences are kept apart exactly if transformers does it.

This holds for full and thin clients. Else a batch row is one sequence, or it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import BadRequestError
from swarm.client import packing
from swarm.client.model import SwarmModelForCausalLM
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from tests.families import LISTED
from tests.logged import logged
from tests.swarm.client.ideal_hops import IdealBackend

IDS = torch.randint(3, 250, (2, 14), generator=torch.Generator().manual_seed(5))
PACKED = torch.tensor([[*range(5), *range(9)], [*range(10), *range(4)]])
COUNTS = (5, 9, 10, 4)
TOGETHER = {"falcon_alibi", "falcon_rotary", "bloom", "opt", "gpt_oss", "mpt", "bert", "openai_gpt", "mamba2"}
"""Families that do not hand positions to their mask: transformers takes a batch row for one sequence, whatever its positions."""


def of(model: Any, **arguments: Any) -> Any:
    with torch.no_grad():
        return model(IDS, **{"position_ids": PACKED, "use_cache": False} | arguments)


@pytest.mark.parametrize("family", [*LISTED, "llama4_text", "gpt_neo", "mpt", "bert", "openai_gpt", "mamba2"])
def test_they_are_apart_where_transformers_keeps_them_apart(family: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    torch.testing.assert_close(of(ours).logits, of(theirs).logits, rtol=1e-4, atol=1e-4)
    assert backend.calls[-1].counts == ((14, 14) if family in TOGETHER else COUNTS)
    expected, got = of(theirs, logits_to_keep=3).logits, of(ours, logits_to_keep=3).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert backend.num_opened == backend.num_closed


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_a_thin_client_knows_it_too(family: str, checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> None:
    backend = IdealBackend(reference(family))
    ours = build_thin(open_checkpoint(checkpoint(family)), backend, SwarmModelForCausalLM)
    expected = of(reference(family)).logits
    torch.testing.assert_close(of(ours).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of(ours, logits_to_keep=3).logits, expected[:, -3:], rtol=1e-4, atol=1e-4)
    assert backend.calls[0].counts == ((14, 14) if family in TOGETHER else COUNTS)


def test_one_row_of_positions_is_for_all_and_a_sequence_may_start_anywhere(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("gpt2")
    positions = torch.tensor([[7, 8, 9, 3, 4, 5, 6, 6, 9, 10, 11, 12, 13, 14]])
    expected = of(theirs, position_ids=positions).logits
    torch.testing.assert_close(of(ours, position_ids=positions).logits, expected, rtol=1e-4, atol=1e-4)
    assert backend.calls[0].counts == (3, 4, 1, 6) * 2 and backend.calls[0].positions == positions[0].tolist() * 2


def test_the_models_limit_is_that_of_each_sequence(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("gpt2")
    ids, positions = IDS.repeat(1, 22), torch.arange(154).repeat(2)[None]
    assert ids.shape[1] > 256
    with torch.no_grad():
        expected = theirs(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(ours(ids, position_ids=positions, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    assert backend.calls[0].counts == (154,) * 4


def test_with_a_mask_or_a_cache_a_row_is_one_sequence_and_a_cache_is_warned_of(
    pair: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    theirs, ours, backend = pair("llama")
    packing.warn_together.cache_clear()
    with caplog.at_level(logging.WARNING, logger=packing.log.name):
        for arguments in (dict(attention_mask=torch.ones_like(IDS)), dict(use_cache=True), dict(use_cache=None)):
            torch.testing.assert_close(of(ours, **arguments).logits, of(theirs, **arguments).logits, rtol=1e-4, atol=1e-4)
            assert backend.calls[-1].counts == (14, 14)
    (said,) = logged(caplog, packing.log)
    assert "pass use_cache=False" in said


@pytest.mark.parametrize("family", ["qwen3_next", "lfm2", "falcon_h1", "jamba"])
def test_a_running_state_would_pass_from_one_to_the_next(family: str, pair: Callable[[str], Any]) -> None:
    """transformers isolates the attention of these, and lets the states of the other blocks run on."""
    _theirs, ours, backend = pair(family)
    with pytest.raises(BadRequestError, match=r"does not keep packed sequences apart .*pass each sequence as a batch row"):
        of(ours)
    assert backend.calls == []


def test_what_hops_could_not_reproduce_is_refused(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama4_text")  # it has chunked attention, over 16 positions
    expected = of(theirs, position_ids=PACKED + 32).logits
    torch.testing.assert_close(of(ours, position_ids=PACKED + 32).logits, expected, rtol=1e-4, atol=1e-4)
    backend.calls.clear()
    with pytest.raises(BadRequestError, match="multiple of its attention_chunk_size 16"):
        of(ours, position_ids=PACKED + 3)
    with pytest.raises(BadRequestError, match="start anew 1040 times, and a step has at most 1024"):
        ours(IDS.repeat(20, 2)[:, :26], position_ids=torch.zeros(1, 26, dtype=torch.long), use_cache=False)
    with pytest.raises(BadRequestError, match=r"position_ids must be a tensor of integers .* got torch.float32"):
        of(ours, position_ids=PACKED + 0.5)
    assert backend.calls == []
