"""The digest names the weights only; an error names the tensor."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from protocols.errors import ModelMismatchError
from protocols.units import Blocks
from protocols.weights import PIECE_BYTES, Manifest
from swarm.checkpoints import digest
from swarm.checkpoints.digest import build_manifest, verify
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import stored_names
from tests.families import FAMILIES, Checkpoints, write_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def copy(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints("llama"), tmp_path / "copy"))


def change_tensor(path: Path, name: str) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors[name].view(-1)[7] += 1e-3
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def test_the_digest_does_not_depend_on_how_files_are_split(checkpoints: Checkpoints) -> None:
    one, many = (open_checkpoint(checkpoints("mixtral", shard)) for shard in (None, "60KB"))
    assert len({info.file for info in many.tensors.values()}) > 10
    manifest = build_manifest(one, None)
    assert manifest.digest == build_manifest(many, None).digest
    assert Manifest.parse(manifest.encode()) == manifest


def test_the_digest_does_not_depend_on_who_saved_the_config(copy: Path) -> None:
    before = build_manifest(open_checkpoint(copy), None).digest
    config = json.loads((copy / "config.json").read_text())
    config |= {"transformers_version": "9.9", "_name_or_path": "elsewhere"}
    (copy / "config.json").write_text(json.dumps(config, indent=7))
    assert build_manifest(open_checkpoint(copy), None).digest == before
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert build_manifest(open_checkpoint(copy), None).digest != before


def test_the_digest_depends_on_every_weight_and_on_the_tokenizer(copy: Path) -> None:
    seen = {build_manifest(open_checkpoint(copy), None).digest}
    (copy / "tokenizer.json").write_text("{}")
    seen.add(build_manifest(open_checkpoint(copy), None).digest)
    change_tensor(copy, "model.layers.4.mlp.down_proj.weight")
    seen.add(build_manifest(open_checkpoint(copy), None).digest)
    assert len(seen) == 3


def test_a_root_is_the_hash_of_the_hashes_of_pieces(tmp_path: Path) -> None:
    config = FAMILIES["llama"]()
    config.vocab_size = 10_000  # so that its embedding has several pieces
    checkpoint = open_checkpoint(write_checkpoint(config, tmp_path))
    entry = next(entry for entry in build_manifest(checkpoint, None).entries if entry.name == "model.embed_tokens.weight")
    data = load_file(tmp_path / "model.safetensors")[entry.name].numpy().tobytes()
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
    assert len(pieces) == 3 and len(pieces[-1]) < PIECE_BYTES
    assert entry.root == hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).digest()


def test_a_manifest_is_computed_once_and_again_when_a_file_changes(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = build_manifest(open_checkpoint(copy), cache)
    hashed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(digest, "_roots", lambda *_: pytest.fail("hashed a second time"))
        assert build_manifest(open_checkpoint(copy), cache) == first
    change_tensor(copy, "model.norm.weight")
    second = build_manifest(open_checkpoint(copy), cache, lambda done, total: hashed.append(done))
    assert second.digest != first.digest
    assert max(hashed) == sum(info.stop - info.start for info in open_checkpoint(copy).tensors.values())


def test_a_damaged_cache_only_costs_time(copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = build_manifest(open_checkpoint(copy), cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    assert build_manifest(open_checkpoint(copy), cache) == first


def test_verify_names_the_tensor_that_differs(copy: Path) -> None:
    manifest = build_manifest(open_checkpoint(copy), None)
    change_tensor(copy, "model.layers.2.self_attn.k_proj.weight")
    checkpoint = open_checkpoint(copy)
    verify(checkpoint, manifest, stored_names(checkpoint, Blocks(3, 5)))  # hashes only what it is asked about
    with pytest.raises(ModelMismatchError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight.*other values"):
        verify(checkpoint, manifest, stored_names(checkpoint, Blocks(1, 3)))


def test_verify_names_a_tensor_of_another_dtype_and_an_absent_one(copy: Path) -> None:
    manifest = build_manifest(open_checkpoint(copy), None)
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)
    tensors["model.extra.weight"] = torch.zeros(3)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(copy)
    with pytest.raises(ModelMismatchError, match=r"model\.norm\.weight.*BF16.*F32"):
        verify(checkpoint, manifest, ["model.norm.weight"])
    with pytest.raises(ModelMismatchError, match=r"model\.extra\.weight"):
        verify(checkpoint, manifest, ["model.extra.weight"])


def test_verify_refuses_another_config(copy: Path) -> None:
    manifest = build_manifest(open_checkpoint(copy), None)
    config = json.loads((copy / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelMismatchError, match=r"config\.json"):
        verify(open_checkpoint(copy), manifest, [])
