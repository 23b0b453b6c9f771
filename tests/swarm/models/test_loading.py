"""Spans, embedding and head of each family make the whole model.

They do so bit for bit; what cannot be loaded is refused with a reason.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaModel

from protocols.errors import BadRequestError, CheckpointError, ModelNotSupportedError
from protocols.ids import Span
from protocols.units import Blocks, Ends
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import EndsModel, load_ends, load_parts, load_span, stored_names
from tests.families import LISTED, OTHERS, REFUSED, Checkpoints

RETURNS_TUPLE = {"falcon_alibi", "falcon_rotary", "bloom", "gpt_neo", "gptj", "mpt", "falcon_h1", "openai_gpt"}
"""Families whose blocks return a tuple, read off transformers' source; the loader has to find it out."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


class StandIn(nn.Module):
    """All blocks of a model, run span by span, in the place of the block list."""

    def __init__(self, ends: EndsModel, spans: list[Any]) -> None:
        super().__init__()
        self.__dict__.update(template=ends.template, spans=spans, as_tuple=ends.returns_tuple)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["template"], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        for span in self.__dict__["spans"]:
            hidden_states = span(hidden_states)
        return (hidden_states, None) if self.as_tuple else hidden_states


def whole(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def values_of(config: Any) -> dict[str, Any]:
    return {**config.to_dict(), "_name_or_path": ""}


@torch.no_grad()
@pytest.mark.parametrize("family", [*LISTED, *OTHERS])
def test_ends_and_spans_are_the_model_bit_for_bit(checkpoints: Checkpoints, family: str) -> None:
    path = checkpoints(family)
    checkpoint = open_checkpoint(path)
    ends = load_ends(checkpoint, dtype=torch.float32)
    assert ends.returns_tuple == (family in RETURNS_TUPLE)
    assert ends.num_blocks == checkpoint.num_blocks and len(getattr(ends.owner, ends.attribute)) == 0
    cuts = [Span(0, 1), Span(1, 3), Span(3, checkpoint.num_blocks)]
    spans = [load_span(checkpoint, cut, dtype=torch.float32) for cut in cuts]
    setattr(ends.owner, ends.attribute, nn.ModuleList([StandIn(ends, spans)]))
    ids = torch.randint(3, 256, (1, 14), generator=torch.Generator().manual_seed(1))
    model = whole(path)
    expected = model(ids, use_cache=False).logits
    assert torch.equal(ends.model(ids, use_cache=False).logits, expected)
    assert values_of(ends.model.config) == values_of(model.config), "people read a config of one block"
    assert expected.std() > 1e-3  # a model that says nothing would pass


def test_a_nested_text_config_stays_whole_for_people_and_says_one_block_inside(tmp_path: Path) -> None:
    text = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, head_dim=8)
    image = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    config = transformers.Gemma3Config(text_config=text, vision_config=image)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    ends = load_ends(open_checkpoint(tmp_path), dtype=torch.float32)
    people, inside = ends.model.config.text_config, ends.owner.config
    assert people.num_hidden_layers == len(people.layer_types) == 3
    assert inside.num_hidden_layers == len(inside.layer_types) == 1


def test_a_span_reads_only_the_files_that_hold_its_tensors(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoints("mixtral", "60KB"), tmp_path / "model"))
    reference = load_span(open_checkpoint(path), Span(1, 3), dtype=torch.float32)
    checkpoint = open_checkpoint(path)
    needed = {checkpoint.tensors[name].file for name in stored_names(checkpoint, Blocks(1, 3))}
    others = {info.file for info in checkpoint.tensors.values()} - needed
    for file in others:
        file.unlink()
    span = load_span(checkpoint, Span(1, 3), dtype=torch.float32)
    assert len(others) >= 5 and len(needed) >= 5
    pairs = zip(reference.layers.parameters(), span.layers.parameters(), strict=True)
    assert all(torch.equal(mine, yours) for mine, yours in pairs)


def test_loading_says_how_much_of_the_blocks_was_read(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints("llama"))
    told: list[tuple[int, int]] = []
    load_parts(checkpoint, Span(0, 2), dtype=torch.float32, on_read=lambda done, total: told.append((done, total)))
    total = sum(checkpoint.tensors[name].num_values for name in stored_names(checkpoint, Blocks(0, 2)))
    assert told == sorted(told) and told[-1] == (total, total) and len(told) > 10
    told.clear()
    load_ends(checkpoint, dtype=torch.float32, on_read=lambda done, total: told.append((done, total)))
    total = sum(checkpoint.tensors[name].num_values for name in stored_names(checkpoint, Ends()))
    assert told == sorted(told) and told[-1] == (total, total) and len(told) > 1


def test_a_span_holds_its_own_weights_and_no_ends(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints("llama"))
    span = load_span(checkpoint, Span(3, 5), dtype=torch.bfloat16)
    stored = load_file(checkpoint.path / "model.safetensors")
    mine = span.layers[1].self_attn.q_proj.weight
    assert torch.equal(mine, stored["model.layers.4.self_attn.q_proj.weight"].bfloat16())
    assert len(span.layers) == span.config.num_hidden_layers == 2
    assert span.layers[1].self_attn.layer_idx == 1
    assert sum(parameter.numel() for parameter in span.parameters()) < sum(checkpoint.block_values[3:5]) + 1_000
    assert not any(parameter.requires_grad for parameter in span.parameters())


def test_loading_leaves_the_checkpoints_config_alone(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints("gemma3_text"))
    before = json.dumps(checkpoint.config.to_dict(), default=str)
    load_span(checkpoint, Span(1, 2), dtype=torch.float32)
    load_ends(checkpoint, dtype=torch.float32)
    assert json.dumps(checkpoint.config.to_dict(), default=str) == before


def test_names_of_a_span_and_of_the_ends_are_every_stored_tensor(checkpoints: Checkpoints) -> None:
    checkpoint = open_checkpoint(checkpoints("qwen3_moe"))
    spans = [stored_names(checkpoint, Blocks(block, block + 1)) for block in range(5)]
    names = [name for names in [*spans, stored_names(checkpoint, Ends())] for name in names]
    assert sorted(names) == sorted(checkpoint.tensors)


def drop_tensor(path: Path, name: str) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors[name]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.norm.weight"])
def test_a_missing_tensor_is_refused_and_never_random(checkpoints: Checkpoints, tmp_path: Path, name: str) -> None:
    path = Path(shutil.copytree(checkpoints("llama"), tmp_path / "model"))
    drop_tensor(path, name)
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor\b"):
        if "layers" in name:
            load_span(checkpoint, Span(1, 4), dtype=torch.float32)
        else:
            load_ends(checkpoint, dtype=torch.float32)
    load_span(checkpoint, Span(3, 5), dtype=torch.float32)  # what it does not need, it does not miss


def test_a_tensor_of_another_shape_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoints("llama"), tmp_path / "model"))
    tensors = load_file(path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(95, 64)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="blocks 0:2"):
        load_span(open_checkpoint(path), Span(0, 2), dtype=torch.float32)


def test_blocks_beyond_the_model_are_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(BadRequestError, match="only blocks 0:5"):
        load_span(open_checkpoint(checkpoints("llama")), Span(3, 6), dtype=torch.float32)


@pytest.mark.parametrize("family", REFUSED)
def test_blocks_that_are_no_chain_are_refused_with_the_reason(checkpoints: Checkpoints, family: str) -> None:
    with pytest.raises(ModelNotSupportedError, match="read") as refusal:
        load_span(open_checkpoint(checkpoints(family)), Span(0, 2), dtype=torch.float32)
    assert "\n" not in str(refusal.value)


def test_blocks_that_read_a_table_outside_the_block_list_are_refused(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A span does not load such a table, so the blocks would compute with made-up numbers (roformer's positions)."""
    forward = LlamaModel.forward

    def reads_its_norm(self: LlamaModel, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        scale = self.norm.weight.mean()
        hook = self.layers[0].self_attn.register_forward_hook(lambda _module, _args, output: (output[0] * scale, *output[1:]))
        try:
            return forward(self, inputs_embeds=inputs_embeds, **kwargs)
        finally:
            hook.remove()

    checkpoint = open_checkpoint(checkpoints("llama"))
    load_span(checkpoint, Span(0, 2), dtype=torch.float32)
    monkeypatch.setattr(LlamaModel, "forward", reads_its_norm)
    with pytest.raises(ModelNotSupportedError, match="table that is no block's"):
        load_span(checkpoint, Span(0, 2), dtype=torch.float32)


def test_huge_tables_are_refused_before_they_are_built(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """A position table lies outside the blocks, so no stored tensor bounds it; on the meta device it costs nothing."""
    path = Path(shutil.copytree(checkpoints("gpt2"), tmp_path / "model"))
    config = json.loads((path / "config.json").read_text()) | {"n_positions": 1 << 27}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotSupportedError, match="tables"):
        load_span(open_checkpoint(path), Span(0, 2), dtype=torch.float32)
