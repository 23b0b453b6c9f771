"""Embedding and head at a node: exact for every family, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from node.engines.ends import Ends, Stretch, allowed, top
from node.engines.ends_selftest import choose_ends, fault
from protocols.errors import BadRequestError, ModelNotSupportedError
from protocols.step_spec import EXCLUDED
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import EndsModel, load_ends
from tests.devices import DEVICE
from tests.families import make_checkpoint

FAMILIES = ["llama", "gpt2", "opt", "opt_projected", "gemma2", "gemma3_text", "bloom", "mixtral", "falcon_alibi", "falcon_rotary"]
FAMILIES += ["gpt_neox", "qwen2", "granite", "cohere2", "mamba2", "mpt", "lfm2", "jamba"]


def loaded(path: Path, dtype: torch.dtype = torch.float32) -> EndsModel:
    return load_ends(open_checkpoint(path), dtype=dtype, device=DEVICE)


@torch.inference_mode()
def of_one_machine(path: Path, sequences: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What enters the first block, what leaves the last, and the logits of each sequence, in the whole model of transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    blocks = load_ends(open_checkpoint(path), dtype=torch.float32)
    name = next(name for name, other in blocks.model.named_modules() if other is blocks.owner)
    layers = getattr(model.get_submodule(name), blocks.attribute)
    assert len(layers) == blocks.num_blocks
    entered: list[Tensor] = []
    left: list[Tensor] = []
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append((args[0] if args else kwargs["hidden_states"])[0].clone()), with_kwargs=True
    )
    layers[-1].register_forward_hook(lambda _, __, out: left.append((out[0] if isinstance(out, tuple) else out)[0].clone()))
    logits = [model(input_ids=sequence[None]).logits[0] for sequence in sequences]
    return entered, left, logits


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_and_head_are_those_of_the_whole_model(family: str, tmp_path: Path) -> None:
    """The oracle is the whole model with its blocks. Sequences of different lengths share the axis, cut at odd places."""
    path = make_checkpoint(family, tmp_path / family)
    host = choose_ends(loaded(path), 256)
    sequences = [torch.randint(3, 256, (length,), generator=torch.Generator().manual_seed(length)) for length in (11, 1, 6)]
    entered, left, logits = of_one_machine(path, sequences)
    pasts = (4, 0, 5)
    stretches = [Stretch(past, len(sequence) - past) for past, sequence in zip(pasts, sequences, strict=True)]
    embedded = host.embed("ids", torch.cat([sequence[past:] for past, sequence in zip(pasts, sequences, strict=True)]), stretches)
    expected = torch.cat([hidden[past:] for past, hidden in zip(pasts, entered, strict=True)])
    assert torch.allclose(embedded.cpu(), expected, atol=1e-6)
    some = torch.tensor([10, 11, 0, 17, 14])
    answers = host.logits(torch.cat(left)[some])
    assert answers.dtype == torch.float32 and torch.allclose(answers, torch.cat(logits)[some], atol=1e-4)
    assert host.is_flat, "the flat axis was not used"
    assert host.shape.can_pool is (family != "opt_projected"), "it makes its hidden states narrower behind the last block"
    with torch.inference_mode():
        base: Any = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        final = torch.cat([base(input_ids=sequence[None]).last_hidden_state[0] for sequence in sequences])
    assert torch.allclose(host.final(torch.cat(left)[some]), final[some], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "bloom"])
def test_sequence_by_sequence_gives_the_same(family: str, tmp_path: Path) -> None:
    """For families that count positions by themselves: the cache tells them how many tokens a sequence has."""
    ends = loaded(make_checkpoint(family, tmp_path / family))
    host = Ends(ends, 256, is_flat=False)
    host.takes_positions = False
    assert fault(host, ends.model) is None
    with pytest.raises(BadRequestError, match="pass no position_ids"):
        host.embed("ids", torch.tensor([1]), [Stretch(0, 1)], torch.tensor([7]))


def test_positions_of_a_caller_are_used(tmp_path: Path) -> None:
    path = make_checkpoint("gpt2", tmp_path / "gpt2")
    ends = loaded(path)
    host, ids, places = choose_ends(ends, 256), torch.tensor([5, 6, 7]), torch.tensor([3, 9, 9])
    expected = ends.model.transformer.wte(ids.to(DEVICE)) + ends.model.transformer.wpe(places.to(DEVICE))
    assert torch.equal(host.embed("ids", ids, [Stretch(0, 3)], places), expected)


def test_a_flat_axis_may_be_longer_than_the_table_of_positions(tmp_path: Path) -> None:
    """40 sequences of 10 tokens are 400 on one axis, and the model has 256 places; so has the head's run of 400 tokens."""
    path = make_checkpoint("gpt2", tmp_path / "gpt2")
    host, sequence = Ends(loaded(path), 256, logits_bytes=300 * 256 * 4), torch.randint(0, 256, (10,))
    (entered,), _, _ = of_one_machine(path, [sequence])
    embedded = host.embed("ids", sequence.repeat(40), [Stretch(0, 10)] * 40)
    assert torch.allclose(embedded.cpu(), entered.repeat(40, 1), atol=1e-6)
    assert torch.allclose(host.logits(embedded), host.logits(embedded[:10]).repeat(40, 1), atol=1e-5)


def test_half_precision_gives_float32_logits_that_are_its_own(tmp_path: Path) -> None:
    ends = loaded(make_checkpoint("llama", tmp_path / "llama"), torch.bfloat16)
    host = choose_ends(ends, 256)
    logits = host.logits(torch.randn(3, 64))
    assert logits.dtype == torch.float32 and torch.equal(logits, logits.bfloat16().float())


def test_what_differs_from_the_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    """A self-test must be able to fail: here by a head that mixes neighbours, and by a vocabulary that is not the head's."""
    ends = loaded(make_checkpoint("llama", tmp_path / "llama"))
    with pytest.raises(ModelNotSupportedError, match="its head gives 256 logits, its vocabulary has 255"):
        choose_ends(ends, 255)

    class Mixing(torch.nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return own(hidden + hidden.roll(1, dims=1))

    own, ends.model.lm_head = ends.model.lm_head, Mixing()
    with pytest.raises(ModelNotSupportedError, match="logits of some tokens alone are other"):
        choose_ends(ends, 256)


# --- the largest logits


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 6)
)
def test_the_largest_come_first_and_of_equals_the_lowest_id(logits: list[list[float]], count: int) -> None:
    values, ids = top(torch.tensor(logits), count)
    assert ids.dtype == torch.int32
    for row, got, tokens in zip(logits, values.tolist(), ids.tolist(), strict=True):
        expected = sorted(range(6), key=lambda token: (-row[token], token))[:count]
        assert tokens == expected and got == [row[token] for token in expected]


@given(st.integers(1, 40), st.integers(0, 2**40 - 1))
def test_what_a_mask_excludes_is_lower_than_any_other_logit(vocabulary: int, bits: int) -> None:
    bits &= (1 << vocabulary) - 1
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(1)) * 1e30
    found = allowed(logits, bits.to_bytes((vocabulary + 7) // 8, "little"))
    for token in range(vocabulary):
        is_allowed = bool(bits >> token & 1)
        assert torch.equal(found[:, token], logits[:, token]) if is_allowed else bool((found[:, token] < EXCLUDED).all())
