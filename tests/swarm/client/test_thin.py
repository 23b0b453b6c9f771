"""`generate` without weights equals transformers for every family.

Hops are perfect here; what needs weights says so.

Every mode over real nodes is in tests/end_to_end/test_thin.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from protocols.errors import BadRequestError
from protocols.inference import Crop
from swarm.client.backend import EMBEDS, IDS
from swarm.client.model import SwarmModelForCausalLM
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from tests.swarm.client.ideal_hops import IdealBackend
from tests.swarm.client.test_generate import (
    BATCH,
    GREEDY,
    LEFT,
    MODES,
    NEW,
    PADDED,
    PROMPT,
    REPETITIVE,
    SAMPLED,
    Collected,
    both,
)
from tests.swarm.client.test_stream import byte_tokenizer

ODD = ["mamba2", "jamba", "openai_gpt", "gemma3_text", "mpt", "bert"]
"""Other names for the cache, no cache, no positions, a mixed stack: what `generate` does differently for some."""

FEW = ["greedy, left-padded", "beams"]
FAMILIES = ["llama", "gemma2"]
Pair = tuple[Any, Any, IdealBackend]


@pytest.fixture(scope="module")
def thin_pair(checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> Callable[[str], Pair]:
    @cache
    def load(family: str) -> Any:
        return open_checkpoint(checkpoint(family))

    def fresh(family: str) -> Pair:
        backend = IdealBackend(reference(family))
        return reference(family), build_thin(load(family), backend, SwarmModelForCausalLM), backend

    return fresh


@pytest.mark.parametrize("mode", FEW)
@pytest.mark.parametrize("family", ODD)
def test_mode_equals_transformers(family: str, mode: str, thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, backend = thin_pair(family)
    prompt, options, _ = MODES[mode]
    expected, got = both(theirs, ours, prompt, **options | {"max_new_tokens": 8})
    assert got.tolist() == expected.tolist()
    assert 0 < len(backend.calls) <= 8 and backend.forms == {IDS}
    assert all(call.want == 1 for call in backend.calls)  # never all logits of a prompt
    assert backend.num_opened == backend.num_closed


@pytest.mark.parametrize("family", FAMILIES)
def test_speculation_by_lookup_and_by_an_assistant(
    family: str, thin_pair: Callable[[str], Pair], reference: Callable[[str], Any]
) -> None:
    theirs, ours, backend = thin_pair(family)
    expected, got = both(theirs, ours, REPETITIVE, **GREEDY, prompt_lookup_num_tokens=4)
    assert got.tolist() == expected.tolist()
    assert any(call.counts[0] > 1 for call in backend.calls[1:])
    backend.calls.clear()
    for options in (GREEDY, SAMPLED):
        expected, got = both(theirs, ours, PROMPT, **options, assistant_model=reference(family))
        assert got.tolist() == expected.tolist()
    assert len(backend.calls) < 2 * NEW
    other = "qwen3" if family != "qwen3" else "llama"
    expected, got = both(theirs, ours, PROMPT, **GREEDY, assistant_model=reference(other))
    assert got.tolist() == expected.tolist() and any(isinstance(op, Crop) for call in backend.calls for op in call.ops)


def test_scores_logits_streamers_and_a_second_turn(thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, backend = thin_pair("llama")
    wanted: dict[str, Any] = dict(return_dict_in_generate=True, output_scores=True, output_logits=True)
    expected, got = both(theirs, ours, BATCH, **GREEDY, **wanted)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(expected.scores), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)
    streamer = Collected()
    one = ours.generate(PROMPT, **GREEDY, streamer=streamer)
    assert streamer.tokens == one[0].tolist() and streamer.has_ended
    answers = []
    for model in (theirs, ours):
        first = model.generate(PADDED, attention_mask=LEFT, **GREEDY, return_dict_in_generate=True)
        said = torch.cat([first.sequences, BATCH[:, :4]], dim=1)
        mask = torch.cat([LEFT, torch.ones(3, NEW + 4, dtype=torch.long)], dim=1)
        backend.calls.clear()
        answers.append(model.generate(said, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY).tolist())
    assert answers[0] == answers[1] and backend.calls[0].counts == (5, 5, 5)


def test_stop_strings_and_the_models_own_drafts(thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, _backend = thin_pair("llama")
    tokenizer = byte_tokenizer()
    usual = theirs.generate(PROMPT, **GREEDY)[0, PROMPT.shape[1] :]
    stop = next(text for token in usual[:-1] if (text := tokenizer.decode([token])).isascii())
    expected, got = both(theirs, ours, PROMPT, **GREEDY, stop_strings=[stop], tokenizer=tokenizer)
    assert got.tolist() == expected.tolist() and got.shape[1] < PROMPT.shape[1] + NEW
    real = dict(attention_mask=torch.ones_like(PROMPT), pad_token_id=int(PROMPT[0, -1]))
    expected = theirs.generate(PROMPT, **GREEDY, **real)
    assert ours.generate(PROMPT, **GREEDY, **real, assistant_model=ours).tolist() == expected.tolist()


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_embeddings_instead_of_ids(family: str, thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, backend = thin_pair(family)
    embeds = theirs.get_input_embeddings()(PADDED).detach()
    expected, got = both(theirs, ours, inputs_embeds=embeds, attention_mask=LEFT, **GREEDY)
    assert got.tolist() == expected.tolist() and backend.forms == {EMBEDS, IDS}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_returns_the_logits_that_were_asked_for(family: str, thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, backend = thin_pair(family)
    with torch.no_grad():
        whole = theirs(BATCH, attention_mask=torch.ones_like(BATCH)).logits
    torch.testing.assert_close(ours(BATCH).logits, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(BATCH, logits_to_keep=2).logits, whole[:, -2:], rtol=1e-4, atol=1e-4)
    assert backend.calls[-1].want == 2
    some = torch.tensor([1, 4])
    torch.testing.assert_close(ours(BATCH, logits_to_keep=some, use_cache=False).logits, whole[:, some], rtol=1e-4, atol=1e-4)
    loss = theirs(BATCH, labels=BATCH).loss
    torch.testing.assert_close(ours(BATCH, labels=BATCH).loss, loss.detach(), rtol=1e-4, atol=1e-4)
    assert ours(BATCH, return_dict=False)[0].shape == whole.shape


async def test_a_stream_in_the_callers_loop(thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, backend = thin_pair("llama")
    expected = theirs.generate(PROMPT, max_new_tokens=6, do_sample=False)[0, PROMPT.shape[1] :].tolist()
    assert [token.id async for token in ours.stream(PROMPT[0].tolist(), max_new_tokens=6)] == expected
    assert backend.num_opened == backend.num_closed == 1


def test_it_holds_no_tensor_and_says_what_needs_one(thin_pair: Callable[[str], Pair], tmp_path: Path) -> None:
    theirs, ours, _backend = thin_pair("llama")
    assert type(ours).__name__ == "LlamaForCausalLM" and isinstance(ours, type(theirs))
    assert not list(ours.parameters()) and not list(ours.buffers())
    assert ours.device == torch.device("cpu") and ours.dtype == torch.float32 and ours.to("cpu") is ours
    assert ours.config.num_hidden_layers == theirs.config.num_hidden_layers
    assert repr(ours) == "LlamaForCausalLM(5 blocks, embedding and head of ideal in a swarm)"
    for use in (
        ours.get_input_embeddings,
        ours.get_output_embeddings,
        lambda: ours.set_input_embeddings(torch.nn.Embedding(9, 64)),
        lambda: ours.resize_token_embeddings(9),
    ):
        with pytest.raises(BadRequestError, match=r"holds no weights.*without thin=True"):
            use()
    with pytest.raises(BadRequestError, match="only a whole model can be saved"):
        ours.save_pretrained(tmp_path)
    for part in (ours.base_model, ours.get_decoder(), ours.lm_head):
        with pytest.raises(BadRequestError, match=r"the inner model cannot be called by itself; call the model"):
            part(PROMPT)
    with pytest.raises(BadRequestError, match="output_hidden_states"):
        ours(PROMPT, output_hidden_states=True)
    with pytest.raises(BadRequestError, match="attentions are not here"):
        ours(PROMPT, output_attentions=True)
    with pytest.raises(BadRequestError, match="takes no token_type_ids"):
        ours(PROMPT, token_type_ids=torch.zeros_like(PROMPT))
    assert not list(tmp_path.iterdir()) and "torch" in sys.modules


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_it_asks_for_positions_that_transformers_would_count_with_the_padding(
    family: str, thin_pair: Callable[[str], Pair]
) -> None:
    theirs, ours, backend = thin_pair(family)
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(4))
    left, right = torch.ones_like(ids), torch.ones_like(ids)
    left[0, :4] = right[0, 8:] = 0
    with pytest.raises(BadRequestError, match="transformers counts padding if no position_ids are given; pass position_ids"):
        ours(ids, attention_mask=left)
    assert backend.num_opened == 0
    with torch.no_grad():
        for mask, positions in ((left, (left.cumsum(1) - 1).clamp(min=0)), (right, None)):
            asked: dict[str, Any] = dict(attention_mask=mask, position_ids=positions)
            expected, got = (model(ids, **asked).logits[mask.bool()] for model in (theirs, ours))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_family_that_counts_by_the_mask_needs_no_positions(thin_pair: Callable[[str], Pair]) -> None:
    theirs, ours, _backend = thin_pair("opt")
    ids = torch.randint(3, 250, (2, 12), generator=torch.Generator().manual_seed(4))
    left = torch.ones_like(ids)
    left[0, :4] = 0
    with torch.no_grad():
        expected, got = (model(ids, attention_mask=left).logits[left.bool()] for model in (theirs, ours))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
