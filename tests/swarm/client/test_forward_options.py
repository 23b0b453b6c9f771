"""Options of a forward count in the call, config and checkpoint.

What nothing would read is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from protocols.errors import BadRequestError
from swarm.client.model import SwarmModelForCausalLM
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from tests.swarm.client.ideal_hops import IdealBackend
from tests.swarm.client.local_backend import local_model

IDS = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(1))
GREEDY: dict[str, Any] = dict(max_new_tokens=3, do_sample=False)


@contextmanager
def configured(*models: Any, **values: Any) -> Iterator[None]:
    before = [dict(model.config.__dict__) for model in models]
    for model in models:
        model.config.__dict__.update(values)
    try:
        yield
    finally:
        for model, old in zip(models, before, strict=True):
            model.config.__dict__.clear()
            model.config.__dict__.update(old)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mixtral"])
def test_the_config_counts_as_the_argument_does(family: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    with configured(theirs, ours, output_hidden_states=True), torch.no_grad():
        expected, got = theirs(IDS).hidden_states[-1], ours(IDS).hidden_states[-1]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert "hidden_states" not in ours(IDS, output_hidden_states=False)  # the call wins
        assert ours.generate(IDS, **GREEDY).tolist() == theirs.generate(IDS, **GREEDY).tolist()
    with configured(ours, return_dict=False):
        assert isinstance(ours(IDS), tuple) and not isinstance(ours(IDS, return_dict=True), tuple)
        assert ours.generate(IDS, **GREEDY).tolist() == theirs.generate(IDS, **GREEDY).tolist()
    with configured(ours, use_cache=False):
        assert ours(IDS).get("past_key_values") is None
    backend.calls.clear()
    for name, said in (("_output_attentions", "attentions"), ("output_router_logits", "router logits")):
        with configured(ours, **{name: True}):
            with pytest.raises(BadRequestError, match=rf"^{said} are not here.*model.config\."):
                ours(IDS)
            assert backend.calls == []
            assert ours.generate(IDS, **GREEDY).tolist() == theirs.generate(IDS, **GREEDY).tolist()  # they would not be seen
        backend.calls.clear()
    with configured(ours, is_causal=False), pytest.raises(BadRequestError, match="is_causal is False"):
        ours.generate(IDS, **GREEDY)
    assert backend.calls == []


def test_so_does_the_checkpoints_config(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for file in checkpoint("llama").iterdir():
        (tmp_path / file.name).symlink_to(file)
    values = json.loads((tmp_path / "config.json").read_text())
    for name in ("output_hidden_states", "output_attentions"):
        (tmp_path / "config.json").unlink()
        (tmp_path / "config.json").write_text(json.dumps(values | {name: True}))
        theirs, (ours, backend) = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32), local_model(tmp_path, 2)
        if name == "output_hidden_states":
            expected = theirs(IDS).hidden_states[-1]
            torch.testing.assert_close(ours(IDS).hidden_states[-1], expected, rtol=1e-4, atol=1e-4)
        else:
            with pytest.raises(BadRequestError, match="attentions are not here"):
                ours(IDS)
            assert backend.calls == []
        assert ours.generate(IDS, **GREEDY).tolist() == theirs.generate(IDS, **GREEDY).tolist()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt name": (dict(atention_mask=torch.ones(2, 6)), r"takes no atention_mask: it takes input_ids, "),
    "sequence lengths of FlashAttention": (dict(cu_seq_lens_q=torch.tensor([0, 6, 12])), "takes no cu_seq_lens_q: packed"),
    "sequence numbers": (dict(seq_idx=torch.zeros(2, 6)), "takes no seq_idx: packed"),
    "a mask of heads": (dict(head_mask=torch.ones(5, 4)), "takes no head_mask: it is for the blocks"),
    "cross-attention": (
        dict(encoder_hidden_states=torch.zeros(2, 3, 64)),
        "takes no encoder_hidden_states: it is for the blocks",
    ),
    "no causal mask": (dict(is_causal=False), "is_causal is False"),
    "router logits": (dict(output_router_logits=True), "router logits are not here"),
    "an argument twice": (dict(input_ids=IDS), "input_ids came twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_dropped_in_silence_is_refused_by_name(
    case: str, pair: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    theirs, ours, backend = pair("gpt2")
    far = IdealBackend(theirs)
    arguments, message = REFUSED[case]
    for model in (ours, build_thin(open_checkpoint(checkpoint("gpt2")), far, SwarmModelForCausalLM)):
        with pytest.raises(BadRequestError, match=message) as caught:
            model(IDS, **arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadRequestError, match=r"arguments .*, got 40"):
        ours(*[None] * 40)
    assert backend.calls == far.calls == []


def test_none_and_arguments_of_the_loss_are_taken(pair: Callable[[str], Any], checkpoint: Callable[[str], Path]) -> None:
    theirs, ours, _backend = pair("llama")
    thin = build_thin(open_checkpoint(checkpoint("llama")), IdealBackend(theirs), SwarmModelForCausalLM)
    labels = IDS.clone()
    labels[:, :2] = 7
    asked: dict[str, Any] = dict(
        labels=labels, num_items_in_batch=5, ignore_index=7, cu_seq_lens_q=None, foo=None, is_causal=True
    )
    with torch.no_grad():
        expected = theirs(IDS, **asked).loss
    for model in (ours, thin):
        torch.testing.assert_close(model(IDS, **asked).loss.detach(), expected, rtol=1e-4, atol=1e-4)


def test_a_loss_is_refused_where_it_would_be_taken_from_padding(
    pair: Callable[[str], Any], checkpoint: Callable[[str], Path]
) -> None:
    """Hops have no output for padding, from which transformers predicts a sequence's first real token."""
    theirs, ours, backend = pair("llama")
    far = IdealBackend(theirs)
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    labels = IDS.masked_fill(mask.eq(0), -100)
    asked: dict[str, Any] = dict(attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
    for model in (ours, build_thin(open_checkpoint(checkpoint("llama")), far, SwarmModelForCausalLM)):
        with pytest.raises(BadRequestError, match=r"labels\[0, 2\] would be predicted from padding; set it to -100"):
            model(IDS, labels=labels, **asked)
        for bad, message in (
            (dict(labels=labels[:, :3]), r"labels must be integers \[2, 6\]"),
            (dict(labels=labels.float()), r"labels must be integers \[2, 6\]"),
            (dict(labels=labels + 300), "labels must be -100, or ids from 0 to 255"),
            (dict(labels=labels, logits_to_keep=2), "logits_to_keep"),
            (dict(logits_to_keep="all"), "logits_to_keep must be"),
            (dict(logits_to_keep=torch.tensor([6])), "logits_to_keep must be"),
        ):
            with pytest.raises(BadRequestError, match=message):
                model(IDS, **bad, **asked)
        assert backend.calls == far.calls == []
        clean = labels.clone()
        clean[0, 2] = -100
        with torch.no_grad():
            expected = theirs(IDS, labels=clean, **asked).loss
        torch.testing.assert_close(model(IDS, labels=clean, **asked).loss.detach(), expected, rtol=1e-4, atol=1e-4)
        backend.calls.clear()
        far.calls.clear()
