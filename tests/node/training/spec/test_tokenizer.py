"""A size alone gives a model and a tokenizer that fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node.training.spec import tokenizer as own
from node.training.spec.model_plan import plan_model
from node.training.spec.reading import read
from node.training.spec.run_file import RunFile
from node.training.spec.tokenizer import tokenizer_folder
from node.training.spec.vocabulary import read_vocabulary
from protocols.errors import ConfigError, DataError
from swarm.models import tokenizer
from tests.node.training.spec.files import write_run

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def sized(folder: Path, sources: str = '"a.txt"') -> RunFile:
    text = f'name = "least"\n[model]\nsize = "300k"\n[data]\ntrain = [{sources}]\n[training]\nsteps = 10\n'
    (folder / "a.txt").write_text(TEXT)
    return read(write_run(folder, text))


def test_a_size_alone_makes_a_model_and_a_tokenizer_that_fit(tmp_path: Path) -> None:
    run = sized(tmp_path)
    plan = plan_model(run)
    folder = tokenizer_folder(run, plan.vocabulary, tmp_path / "cache")
    vocabulary, loaded = read_vocabulary(folder), tokenizer.load(folder)
    assert 257 < vocabulary.num_ids <= plan.vocabulary == 1_024
    assert vocabulary.end_id == loaded.eos_token_id == plan.raw_config["eos_token_id"] == 0
    assert loaded.decode(loaded("über 日本 fox")["input_ids"]) == "über 日本 fox"


def test_it_is_trained_once_for_the_same_text_and_again_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, cache = sized(tmp_path), tmp_path / "cache"
    first = tokenizer_folder(run, 512, cache)
    content = (first / "tokenizer.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.delattr(own, "train_tokenizer")
        assert tokenizer_folder(run, 512, cache) == first
    assert tokenizer_folder(run, 512, tmp_path / "elsewhere").joinpath("tokenizer.json").read_bytes() == content
    assert tokenizer_folder(run, 300, cache) != first
    (tmp_path / "a.txt").write_text(TEXT + "!")
    assert tokenizer_folder(run, 512, cache) != first
    assert len(list(cache.iterdir())) == 3


def test_conversations_and_tables_are_read_as_training_reads_them(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "zebra zebra"}, {"role": "assistant", "content": "quagga quagga"}]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"chat": turns, "text": "no"}) for _ in range(20)))
    run = sized(tmp_path, '{files = "chats.jsonl", messages = "chat"}')
    words = json.loads((tokenizer_folder(run, 512, tmp_path / "cache") / "tokenizer.json").read_text())["model"]["vocab"]
    assert "zebra" in words and "quagga" in words and "no" not in words


def test_only_the_beginning_of_a_long_text_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "MAX_LETTERS", len(TEXT))
    (tmp_path / "b.txt").write_text("zebra " * 50)
    run = sized(tmp_path, '"a.txt", "b.txt"')
    words = json.loads((tokenizer_folder(run, 512, tmp_path / "cache") / "tokenizer.json").read_text())["model"]["vocab"]
    assert "fox" in " ".join(words) and "zebra" not in " ".join(words)


def test_a_given_tokenizer_is_used_and_the_checkpoints_else(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert tokenizer_folder(read(file), 4_096, tmp_path / "cache") == tmp_path
    of_checkpoint = f'name = "least"\n[model]\ncheckpoint = "{tmp_path}"\n[data]\ntrain = ["a"]\n[training]\nsteps = 10\n'
    run = read(write_run(tmp_path, of_checkpoint))
    assert tokenizer_folder(run, 4_096, tmp_path / "cache") == tmp_path
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json on this machine"):
        tokenizer_folder(run, 4_096, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    run, cache = sized(tmp_path, '"a.txt", "empty.txt"'), tmp_path / "cache"
    with pytest.raises(ConfigError, match="no file matches"):
        tokenizer_folder(run, 512, cache)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="is empty"):
        tokenizer_folder(run, 512, cache)
    assert not list(cache.iterdir())
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"no tokenizer can be trained and kept in .*: .*exists"):
        tokenizer_folder(sized(tmp_path), 512, cache)
