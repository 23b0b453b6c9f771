"""A client model says that it holds embedding and head only.

It does so wherever torch or transformers would take these for the whole model.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from protocols.errors import BadRequestError
from swarm.client.model import SwarmModelForCausalLM
from swarm.client.refusals import REFUSED
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from tests.swarm.client.ideal_hops import IdealBackend
from tests.swarm.client.local_backend import local_model

PROMPT = torch.randint(3, 250, (2, 6), generator=torch.Generator().manual_seed(17))
GREEDY: dict[str, Any] = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)


@pytest.fixture(scope="module", params=["full", "thin"])
def model(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> Any:
    if request.param == "full":
        return local_model(checkpoint("llama"), 2)[0]
    return build_thin(open_checkpoint(checkpoint("llama")), IdealBackend(reference("llama")), SwarmModelForCausalLM)


@pytest.fixture
def theirs(reference: Callable[[str], Any]) -> Any:
    return reference("llama")


def refused(use: Callable[[], object], words: str) -> None:
    with pytest.raises(BadRequestError, match=words) as caught:
        use()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_with_the_next_step(name: str, model: Any, theirs: Any) -> None:
    assert callable(getattr(theirs, name)), "transformers and torch have no such method: take it out of the table"
    refused(getattr(model, name), f"{name} does not work on a model in a swarm: ")


def test_nothing_is_written(model: Any, tmp_path: Path) -> None:
    refused(lambda: model.save_pretrained(tmp_path), "load the checkpoint with transformers' AutoModelForCausalLM")
    refused(lambda: torch.save(model.state_dict(), tmp_path / "weights.pt"), "only a whole model can be saved")
    refused(lambda: nn.Sequential(model).state_dict(), "only a whole model can be saved")
    assert not list(tmp_path.iterdir())


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "type": lambda model: model.type(torch.float16),
    "to a dtype": lambda model: model.to(torch.float16),
    "to a device and a dtype": lambda model: model.to("cpu", dtype=torch.bfloat16),
    "like a tensor": lambda model: model.to(torch.zeros(1, dtype=torch.float16)),
    "in a module around it": lambda model: nn.Sequential(model).half(),
}


@pytest.mark.parametrize("case", CONVERSIONS)
def test_another_dtype_than_the_routes_is_refused(case: str, model: Any) -> None:
    refused(lambda: CONVERSIONS[case](model), "computes in float32, here and at the nodes, .* load it with dtype=")
    assert model.dtype == torch.float32 and all(one.dtype == torch.float32 for one in model.parameters())


def test_where_nothing_changes_it_stays_itself_and_answers_as_before(model: Any, theirs: Any) -> None:
    for same in (model.float, model.cpu, model.eval, lambda: model.to("cpu"), lambda: model.to(torch.float32)):
        assert same() is model
    assert model.to("cpu", torch.float32).train(False).requires_grad_(False) is model
    refused(lambda: model.to("meta"), "meta device")
    assert model.generate(PROMPT, **GREEDY).tolist() == theirs.generate(PROMPT, **GREEDY).tolist()


def test_numbers_that_transformers_keeps_in_float32_are_not_rounded(checkpoint: Callable[[str], Path]) -> None:
    """`to(bfloat16)` of a bfloat16 model changes nothing; torch itself would round the buffers of the rotary embedding."""
    model, _backend = local_model(checkpoint("llama"), dtype=torch.bfloat16)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any(buffer.dtype == torch.float32 for buffer in before.values())
    model.to(torch.bfloat16)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    refused(model.float, "computes in bfloat16")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral", "bloom"])
def test_parameters_are_counted_as_transformers_counts(
    family: str, pair: Callable[[str], Any], reference: Callable[[str], Any]
) -> None:
    theirs, ours, _backend = pair(family)
    assert ours.num_parameters() == theirs.num_parameters() > sum(one.numel() for one in ours.parameters())
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    assert ours.num_parameters(only_trainable=True) == 0
    assert ours.get_memory_footprint() < theirs.get_memory_footprint()  # of this machine's memory


def test_it_has_no_train_mode_and_is_not_made_from_a_config(model: Any) -> None:
    refused(model.train, "dropout is off at the nodes")
    refused(model.gradient_checkpointing_enable, "the blocks at the nodes are frozen")
    for cls in (type(model), SwarmModelForCausalLM):
        refused(lambda cls=cls: cls(model.config), "call SwarmModelForCausalLM.from_pretrained")
    assert not model.training


COPIES: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "torch.save": lambda model: torch.save(model, io.BytesIO()),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "a method, as a pool of processes would send it": lambda model: pickle.dumps(model.generate),
}


@pytest.mark.parametrize("case", COPIES)
def test_it_is_not_copied(case: str, model: Any) -> None:
    refused(lambda: COPIES[case](model), "cannot be copied or pickled, .* call from_pretrained again")


def test_nothing_asks_for_a_gradient_unless_it_is_told_to(model: Any, theirs: Any) -> None:
    """As transformers with frozen parameters: the loss is right, and logits are plain values."""
    loss = model(PROMPT, labels=PROMPT).loss
    torch.testing.assert_close(loss, theirs(PROMPT, labels=PROMPT).loss)
    logits = model(PROMPT).logits
    logits[:, 0] = 0
    assert not loss.requires_grad and not logits.requires_grad and logits.numpy().shape == (2, 6, 256)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_embedding_and_head_are_trained_through_frozen_blocks(family: str, checkpoint: Callable[[str], Path]) -> None:
    """qwen2 ties its head to the embedding, which gets both gradients."""
    theirs, (ours, _backend) = local_reference(checkpoint(family)), local_model(checkpoint(family), 2)
    assert ours.requires_grad_() is ours
    assert ours.num_parameters(only_trainable=True) == sum(one.numel() for one in ours.parameters())
    for model in (theirs, ours):
        model(PROMPT, labels=PROMPT).loss.backward()
    whole = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name].grad, rtol=1e-4, atol=1e-6)
    assert ours.generate(PROMPT, **GREEDY).tolist() == theirs.generate(PROMPT, **GREEDY).tolist()


def test_a_head_alone_is_trained_on_what_sessions_give(checkpoint: Callable[[str], Path]) -> None:
    theirs, (ours, backend) = local_reference(checkpoint("llama")), local_model(checkpoint("llama"), 2)
    for model in (theirs, ours):
        model.requires_grad_(False)
        model.get_output_embeddings().requires_grad_()
        model(PROMPT, labels=PROMPT).loss.backward()
    assert len(backend.calls) == 1, "nothing below the head needs a gradient"
    torch.testing.assert_close(ours.lm_head.weight.grad, theirs.lm_head.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_thin_model_has_nothing_to_train(checkpoint: Callable[[str], Path], reference: Callable[[str], Any]) -> None:
    thin = build_thin(open_checkpoint(checkpoint("llama")), IdealBackend(reference("llama")), SwarmModelForCausalLM)
    refused(thin.requires_grad_, "a thin model holds no weights")
    embeds = torch.zeros(1, 2, 64, requires_grad=True)
    refused(lambda: thin(inputs_embeds=embeds), "a thin model holds no head, so no gradient begins here")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_resized_embeddings_have_logits_and_ids_of_the_new_width(family: str, checkpoint: Callable[[str], Path]) -> None:
    """qwen2 and gpt2 tie their head to the embedding. New vectors are drawn: from the same seed, they are transformers'."""
    theirs, ours = local_reference(checkpoint(family)), local_model(checkpoint(family), 2)[0]
    refused(lambda: ours(torch.tensor([[5, 256]])), "this model has ids 0 to 255")
    for size in (263, 250):
        for model in (theirs, ours):
            torch.manual_seed(5)
            model.resize_token_embeddings(size)
        ids = torch.tensor([[5, 7, size - 1, 9]])
        with torch.no_grad():
            expected, got = theirs(ids).logits, ours(ids).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert got.shape[-1] == ours.config.vocab_size == size
        assert ours.generate(ids, **GREEDY).tolist() == theirs.generate(ids, **GREEDY).tolist()
        assert ours.num_parameters() == theirs.num_parameters()
        refused(lambda size=size: ours(torch.tensor([[size]])), f"this model has ids 0 to {size - 1}")


def local_reference(path: Path) -> Any:
    """One of its own: it is changed here."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
