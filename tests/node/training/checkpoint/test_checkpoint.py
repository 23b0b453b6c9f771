"""Checkpoints: bits, Hugging Face's form, the newest, refusals."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from node.training.checkpoint import contents
from node.training.checkpoint.folder import CheckpointFolder, surplus
from node.training.checkpoint.writer import CheckpointWriter
from protocols.errors import BadRequestError, CheckpointError, ModelMismatchError, SpanNotServedError
from protocols.ids import ModelId
from protocols.units import Blocks, Ends
from swarm.models.checkpoint import open_checkpoint
from swarm.training.snapshot import PARAMETER, UnitSnapshot
from tests.node.training.checkpoint.runs import Run, make_run, spec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("base"))


def newest_version(folder: CheckpointFolder, run: Run) -> int | None:
    found = folder.newest(run.model.run, run.model.spec)
    return found.version if found else None


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_what_was_written_is_loaded_bit_for_bit_and_opens_in_transformers(family: str, tmp_path: Path) -> None:
    run, folder = make_run(tmp_path / "base", family), CheckpointFolder(tmp_path / "runs" / "prose")
    path = run.write(folder, 40)
    assert path == tmp_path / "runs" / "prose" / "checkpoint-40"
    assert [one.name for one in path.parent.iterdir()] == ["checkpoint-40"]
    stored = folder.newest(run.model.run, run.model.spec)
    assert stored is not None and stored.version == 40
    stored.verify()
    for unit in run.model.units:
        written, again = run.snapshot(unit, 40), stored.load(unit)
        assert (again.unit, again.version, again.chain, again.form) == (unit, 40, run.chain(unit, 40), written.form)
        assert torch.equal(again.data, written.data), unit

    ids = torch.arange(12).view(1, 12) * 7 % 256
    expected = whole_model(run, 40)
    opened = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert opened.dtype is torch.float32
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, expected(ids).logits)
        assert not torch.equal(opened(ids).logits, transformers.AutoModelForCausalLM.from_pretrained(run.base.path)(ids).logits)
    assert transformers.AutoTokenizer.from_pretrained(path)("a list").input_ids
    assert open_checkpoint(path).num_blocks == run.model.num_blocks, "a node opens it, too"


def whole_model(run: Run, version: int) -> transformers.PreTrainedModel:
    """Version 0 by transformers, with the units' parameters of another version written into it, by the model's own names."""
    model = transformers.AutoModelForCausalLM.from_pretrained(run.base.path, dtype=torch.float32)
    owned = dict(model.named_parameters())
    blocks = next(name for name in owned if ".0." in name).partition("0.")[0]
    with torch.no_grad():
        for snapshot in run.snapshots(version):
            for name, tensor in snapshot.kind(PARAMETER).items():
                owned[f"{blocks}{name}" if isinstance(snapshot.unit, Blocks) else name].copy_(tensor)
    return model


def test_a_bf16_model_is_stored_in_float32_and_says_so(run: Run, tmp_path: Path) -> None:
    lower = replace(run, model=replace(run.model, config={**run.model.config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    path = lower.write(CheckpointFolder(tmp_path), 1)
    config = json.loads((path / "config.json").read_bytes())
    assert config["dtype"] == "float32" and "torch_dtype" not in config
    assert transformers.AutoModelForCausalLM.from_pretrained(path).dtype is torch.float32


def test_the_newest_are_kept_and_the_best(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=2)
    for version in (10, 20, 30, 40):
        run.write(folder, version, best=10)
    assert folder.versions() == [40, 30, 10]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-30", "checkpoint-40"]
    assert surplus([5, 1, 9, 7], 3) == [1]
    assert surplus([5, 1], 3) == []


def test_a_version_that_is_there_already_is_replaced(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    path = run.write(folder, 10)
    (path / "ends.safetensors").unlink()
    assert newest_version(folder, run) is None
    run.write(folder, 10)
    assert newest_version(folder, run) == 10
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint-10"]


def test_a_damaged_checkpoint_is_passed_over_or_named(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = CheckpointFolder(tmp_path)
    run.write(folder, 10)
    path = run.write(folder, 20)
    weights, listed = path / contents.weights_file(Blocks(1, 2)), path / contents.LIST
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = folder.newest(run.model.run, run.model.spec)
    assert found is not None and found.version == 20, "sizes are right"
    assert isinstance(found.load(Ends()), UnitSnapshot)
    with pytest.raises(CheckpointError, match=r"decoder/1:2 of .* is not what was written"):
        found.load(Blocks(1, 2))
    with pytest.raises(CheckpointError, match=r"block-00001\.safetensors is damaged"):
        found.verify()
    with pytest.raises(SpanNotServedError, match="4 units"):
        found.load(Blocks(0, 3))
    older = folder.newest(run.model.run, run.model.spec, below=20)
    assert older is not None and older.version == 10
    weights.write_bytes(whole[:-1])
    assert newest_version(folder, run) == 10
    assert "checkpoint of version 20 is passed over" in caplog.text and "expected" in caplog.text
    weights.write_bytes(whole)
    for broken in (b"{}", b"no JSON", listed.read_bytes().replace(b'"format": 1', b'"format": 2')):
        listed.write_bytes(broken)
        assert newest_version(folder, run) == 10
    listed.unlink()
    assert newest_version(folder, run) == 10


@pytest.mark.parametrize(
    "odd",
    [
        lambda table: table["files"].__setitem__("../other", {"bytes": 1, "sha256": "ab" * 32}),
        lambda table: table["files"].__setitem__("/etc/passwd", {"bytes": 1, "sha256": "ab" * 32}),
        lambda table: table["files"]["config.json"].__setitem__("bytes", -1),
        lambda table: table["units"].__setitem__("decoder/0:1", {"chain": "ab", "digest": "ab" * 32}),
        lambda table: table["units"].__setitem__("decoder/0/expert/1", table["units"]["decoder/ends"]),
        lambda table: table["spec"].__setitem__("seed", -1),
        lambda table: table.__setitem__("version", "40"),
        lambda table: table.__setitem__("files", [[]]),
    ],
)  # fmt: skip
def test_a_list_of_another_form_is_refused(odd: object, run: Run, tmp_path: Path) -> None:
    facts = contents.UnitFacts(chain=bytes(32), digest=bytes(32))
    files = {"config.json": contents.FileFacts(num_bytes=3, sha256="cd" * 32)}
    own = contents.Contents(run=run.model.run, spec=spec(), version=40, units={Ends(): facts, Blocks(0, 1): facts}, files=files)
    assert contents.parse(own.encode(), tmp_path) == own
    table = json.loads(own.encode())
    odd(table)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="is no list of a checkpoint"):
        contents.parse(json.dumps(table).encode(), tmp_path)


def test_a_checkpoint_of_another_run_is_refused_with_the_first_difference(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    run.write(folder, 10)
    with pytest.raises(ModelMismatchError, match="version 10 is of another run: seed is 1 here, 0 there"):
        folder.newest(run.model.run, spec(seed=1))
    with pytest.raises(ModelMismatchError, match="the digest of the model is cdcdcdcdcdcd… here, abababababab… there"):
        folder.newest(ModelId("prose", "cd" * 32), spec())


def test_a_writer_takes_each_unit_of_its_version_once_and_publishes_all_or_none(run: Run, tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    with CheckpointWriter(folder, run.model, 10) as writer:
        writer.add(run.snapshot(Ends(), 10))
        for unit, version in ((Ends(), 10), (Blocks(0, 1), 11), (Blocks(7, 8), 10)):
            with pytest.raises(BadRequestError, match="takes each of 4 units once, got"):
                writer.add(UnitSnapshot.of(unit=unit, version=version, chain=bytes(32), tensors={}))
        with pytest.raises(BadRequestError, match="lacks 3 units, first decoder/0:1"):
            writer.publish()
        second = CheckpointFolder(tmp_path)
        second.clean()  # as another process begins: this one is being written, and stays
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == [], "nothing is left of a checkpoint that was not published"


def test_a_folder_that_cannot_be_written_is_a_typed_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of version 1 at"):
        CheckpointWriter(CheckpointFolder(tmp_path / "file"), run.model, 1)


class GatedFolder(CheckpointFolder):
    """Waits before it publishes."""

    has_come, opens = threading.Event(), threading.Event()

    def publish(self, unfinished: Path, version: int) -> Path:
        self.has_come.set()
        assert self.opens.wait(120)
        return super().publish(unfinished, version)


def test_a_keeper_that_is_cancelled_while_a_checkpoint_is_published_leaves_it_whole(run: Run, tmp_path: Path) -> None:
    """The thread that publishes goes on; the one that cleans up must not remove files under it."""
    folder = GatedFolder(tmp_path)
    writer = CheckpointWriter(folder, run.model, 10)
    for snapshot in run.snapshots(10):
        writer.add(snapshot)
    with ThreadPoolExecutor() as pool:
        published = pool.submit(writer.publish)
        assert folder.has_come.wait(120)
        abandoned = pool.submit(writer.abandon)
        threading.Timer(0.2, folder.opens.set).start()
        assert published.result(120).is_dir() and abandoned.result(120) is None
    assert newest_version(folder, run) == 10
