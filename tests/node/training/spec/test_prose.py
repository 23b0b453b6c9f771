"""`examples/prose` prepares itself, the same way each time."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from node.training.spec.description import describe
from node.training.spec.model_plan import plan_model
from node.training.spec.reading import read
from swarm.models import tokenizer
from tests.node.training.spec.files import PROSE

sys.path.insert(0, str(PROSE))

import prepare  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prose")
    prepare.prepare(made)
    for name in ("run.toml", "config.json"):
        shutil.copy(PROSE / name, made / name)
    return made


def test_the_run_file_fits_what_is_prepared(folder: Path) -> None:
    run = read(folder / "run.toml")
    plan = plan_model(run)  # refuses a tokenizer that goes beyond the config
    assert describe(run, plan).num_parameters == 3_332_544
    assert len(list((folder / "text").iterdir())) + -(-len(topics) // prepare.HELD_OUT) == len(topics)


def test_nothing_held_out_is_trained_on(folder: Path) -> None:
    train = {part for file in (folder / "text").iterdir() for part in prepare.paragraphs(file.read_text())}
    held_out = prepare.paragraphs((folder / "held-out.txt").read_text())
    assert len(held_out) > 100 and not train & set(held_out)


def test_the_tokenizer_writes_every_text_and_reads_it_back(folder: Path) -> None:
    found = tokenizer.load(folder)
    text = (folder / "held-out.txt").read_text()[:5_000] + "\x00 né 日本 🌍"
    ids = found(text)["input_ids"]
    assert found.decode(ids) == text and len(found) == prepare.VOCABULARY and found.eos_token_id == 0
    assert len(ids) < len(text) / 3


def test_a_second_call_writes_the_same_bytes_and_leaves_nothing_else(folder: Path) -> None:
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    (folder / "text" / "old.txt").write_text("of another Python")
    prepare.prepare(folder)
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
