"""Version 0 of a run: drawn checkpoints, and manifests of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from node.training.initial import draw_checkpoint, manifest_of_base, manifest_of_run
from protocols.errors import DiskFullError, ModelMismatchError
from protocols.ids import ModelId, Span
from protocols.units import Blocks, Ends
from protocols.weights import Manifest, canonical_config
from swarm.checkpoints.digest import build_manifest
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_ends, load_parts
from swarm.weights.cache import ModelCache
from tests.families import FAMILIES, add_byte_tokenizer, make_checkpoint
from tests.protocols.samples import RUN

ALL = (Blocks(0, 5), Ends())
SPEC = dataclasses.replace(RUN, seed=3)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["gemma3_text", "gpt2", "llama", "mamba", "qwen3_moe"])
def test_a_drawn_checkpoint_opens_in_transformers_and_in_our_own_loader(name: str, tmp_path: Path) -> None:
    assert draw_checkpoint(FAMILIES[name](), 0, ALL, tmp_path) == ()
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    checkpoint = open_checkpoint(tmp_path)
    _module, parts = load_parts(checkpoint, Span(1, 3), dtype=torch.float32)
    blocks = model.get_decoder().layers if hasattr(model.get_decoder(), "layers") else model.get_decoder().h
    for number in (1, 2):
        for key, tensor in blocks[number].state_dict().items():
            assert torch.equal(parts.tensors()[f"{number}.{key}"], tensor), key
    ends = load_ends(checkpoint, dtype=torch.float32).tensors()
    own = model.state_dict()
    assert ends and all(torch.equal(own[key], tensor) for key, tensor in ends.items() if key in own)


def test_the_directory_is_what_save_pretrained_of_that_model_would_be(tmp_path: Path) -> None:
    """Config and tensors: so the same digest."""
    draw_checkpoint(FAMILIES["qwen3_moe"](), 0, ALL, tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").unlink()
    ours, theirs = (build_manifest(open_checkpoint(tmp_path / name), None) for name in ("ours", "theirs"))
    assert ours.digest == theirs.digest


def test_units_drawn_alone_are_the_files_of_the_whole(tmp_path: Path) -> None:
    config = FAMILIES["qwen3_moe"]()
    draw_checkpoint(config, 0, ALL, tmp_path / "whole")
    draw_checkpoint(config, 0, [Blocks(3, 4)], tmp_path / "apart")
    some = files_of(tmp_path / "apart")
    assert len([name for name in some if name.startswith("unit-")]) == 1
    draw_checkpoint(config, 0, [Ends(), Blocks(0, 3)], tmp_path / "apart")
    draw_checkpoint(config, 0, [Blocks(4, 5)], tmp_path / "apart")
    assert files_of(tmp_path / "apart") == files_of(tmp_path / "whole")
    assert some.items() <= files_of(tmp_path / "whole").items()


def test_the_manifest_of_a_run_is_that_of_the_drawn_checkpoint_with_its_spec(tmp_path: Path) -> None:
    config, drawn, seen = FAMILIES["qwen3_moe"](), tmp_path / "drawn", list[tuple[int, int]]()
    draw_checkpoint(config, SPEC.seed, ALL, drawn)
    add_byte_tokenizer(drawn)
    manifest = manifest_of_run(config, SPEC, drawn, lambda *counts: seen.append(counts))
    assert manifest == dataclasses.replace(build_manifest(open_checkpoint(drawn), None), run=SPEC)
    assert [file.name for file in manifest.files] == ["tokenizer.json", "tokenizer_config.json"]
    assert seen == [(number, 6) for number in range(1, 7)]
    assert Manifest.from_canonical(manifest.canonical()) == manifest
    assert manifest_of_run(config, dataclasses.replace(SPEC, seed=4)).entries != manifest.entries


def test_a_stage_draws_its_units_into_the_cache_and_loads_only_those(tmp_path: Path) -> None:
    manifest = manifest_of_run(FAMILIES["qwen3_moe"](), SPEC)
    cache = ModelCache(tmp_path, ModelId("prose", manifest.digest), manifest)
    try:
        assert draw_checkpoint(FAMILIES["qwen3_moe"](), SPEC.seed, [Blocks(1, 3)], cache.directory, manifest) == ()
        checkpoint = open_checkpoint(cache.directory)
        tensors = load_parts(checkpoint, Span(1, 3), dtype=torch.float32)[1].tensors()
        assert {name.partition(".")[0] for name in tensors} == {"1", "2"}
        here = [entry.name for entry in manifest.entries if ".layers.1." in entry.name or ".layers.2." in entry.name]
        assert cache.absent(here) == ()  # nothing of these would be fetched
        assert {shard.key for shard in cache.absent(entry.name for entry in manifest.entries)} >= {
            "model.layers.0.",
            "lm_head.weight",
        }
    finally:
        cache.close()


def test_a_tensor_that_another_cpu_drew_otherwise_is_named_and_not_kept(tmp_path: Path) -> None:
    manifest = manifest_of_run(FAMILIES["llama"](), SPEC)
    odd = "model.layers.1.mlp.up_proj.weight"
    entries = tuple(entry._replace(root=bytes(32)) if entry.name == odd else entry for entry in manifest.entries)
    other = dataclasses.replace(manifest, entries=entries)
    assert draw_checkpoint(FAMILIES["llama"](), SPEC.seed, [Blocks(1, 3)], tmp_path, other) == (odd,)
    assert sum(name.startswith("unit-") for name in files_of(tmp_path)) == 1
    load_parts(open_checkpoint(tmp_path), Span(2, 3), dtype=torch.float32)


def test_a_config_that_makes_other_tensors_than_the_manifest_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    manifest = manifest_of_run(FAMILIES["llama"](), SPEC)
    config = FAMILIES["llama"]()
    config.intermediate_size = 95
    with pytest.raises(ModelMismatchError, match=r"mlp.down_proj.weight.*\[64,95\].*\[64,96\]"):
        draw_checkpoint(config, SPEC.seed, ALL, tmp_path / "none", manifest)
    assert not (tmp_path / "none").exists()


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFullError, match="cannot write"):
        draw_checkpoint(FAMILIES["llama"](), 0, ALL, tmp_path / "file" / "below")


def test_a_run_from_a_checkpoint_has_its_manifest_and_the_spec(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint("llama", tmp_path / "base"))
    base = build_manifest(checkpoint, None)
    manifest = manifest_of_base(checkpoint, dataclasses.replace(SPEC, base=base.digest), None)
    assert (manifest.entries, manifest.config, manifest.files) == (base.entries, base.config, base.files)
    assert manifest.run is not None and manifest.run.base == base.digest != manifest.digest
    with pytest.raises(ModelMismatchError, match=rf"begins with model {'0' * 12}"):
        manifest_of_base(checkpoint, dataclasses.replace(SPEC, base="0" * 64), None)


def test_the_config_is_saved_as_transformers_saves_it(tmp_path: Path) -> None:
    draw_checkpoint(FAMILIES["gemma3_text"](), 0, [], tmp_path)
    raw = json.loads((tmp_path / "config.json").read_bytes())
    theirs = json.loads((make_checkpoint("gemma3_text", tmp_path / "theirs") / "config.json").read_bytes())
    assert canonical_config(raw) == canonical_config(theirs)
    assert raw["architectures"] == ["Gemma3ForCausalLM"] and raw["dtype"] == "float32"
