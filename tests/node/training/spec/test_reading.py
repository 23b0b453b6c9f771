"""Every field of a run file is read, checked and named."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from node.training.data.sources import Source
from node.training.spec import run_file
from node.training.spec.reading import SECTIONS, TOP, field_names, parse_overrides, read
from node.training.spec.run_file import RunFile, parse_size
from protocols import runs
from protocols.errors import ConfigError
from tests.node.training.spec.files import PROSE, write_run

MINIMAL = """
name = "least"
[model]
size = "3M"
[data]
train = ["a.txt"]
[training]
steps = 10
"""

OTHER: dict[str, tuple[str, Any]] = {
    "name": ("other", "other"),
    "seed": ("7", 7),
    "model.size": ("1.5B", "1.5B"),
    "data.sequence_tokens": ("256", 256),
    "data.packing": ("false", False),
    "training.steps": ("11", 11),
    "training.batch_tokens": ("65_536", 65_536),
    "training.micro_batch_sequences": ("16", 16),
    "training.recompute": ("never", "never"),
    "training.compute": ("bfloat16", "bfloat16"),
    "training.activations": ("int8", "int8"),
    "optimizer.name": ("muon", "muon"),
    "optimizer.lr": ("1", 1.0),
    "optimizer.betas": ("[0, 0.5]", (0.0, 0.5)),
    "optimizer.eps": ("1e-6", 1e-6),
    "optimizer.weight_decay": ("0", 0.0),
    "optimizer.clip": ("0.5", 0.5),
    "optimizer.momentum": ("0.9", 0.9),
    "schedule.shape": ("wsd", "wsd"),
    "schedule.warmup_steps": ("3", 3),
    "schedule.final_share": ("0", 0.0),
    "schedule.decay_share": ("0.5", 0.5),
    "averaging.codec": ("int8", "int8"),
    "averaging.deadline_s": ("5", 5.0),
    "evaluation.every_steps": ("0", 0),
    "evaluation.samples": ('["A list", "A dict"]', ("A list", "A dict")),
    "checkpoint.every_steps": ("7", 7),
    "serving.every_versions": ("3", 3),
}
"""Field -> (its text on the command line, its value then)."""
PATHS = {"model.tokenizer", "data.train", "data.validation"}
INSTEAD = {"model.config", "model.checkpoint", "training.tokens", "training.ratio"}


def refusal(text: str, folder: Path, overrides: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read(write_run(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def value_of(run: RunFile, name: str) -> Any:
    section, _, key = name.rpartition(".")
    return getattr(getattr(run, section) if section else run, key)


def test_the_example_is_read_and_says_every_section() -> None:
    document = tomllib.loads((PROSE / "run.toml").read_text())
    assert set(SECTIONS) | set(TOP) == set(document)
    run = read(PROSE / "run.toml")
    assert run.model.config == PROSE / "config.json" and run.data.train == (Source(files=(f"{PROSE}/text/*.txt",)),)
    assert run.micro_batch_tokens == 1_024 and run.num_micro_batches == 8
    assert (run.optimizer.betas, run.averaging.deadline_s, run.evaluation.samples) == ((0.9, 0.95), 30.0, ("A list is",))


def test_every_field_has_its_default_and_can_be_given_in_file_and_on_the_command_line(tmp_path: Path) -> None:
    assert set(field_names()) == set(OTHER) | PATHS | INSTEAD
    usual = read(write_run(tmp_path, MINIMAL))
    for name, (text, value) in OTHER.items():
        assert value_of(usual, name) != value
        changed = read(tmp_path / "run.toml", parse_overrides([f"--{name}", text]))
        assert value_of(changed, name) == value and type(value_of(changed, name)) is type(value)
        assert changed == read(tmp_path / "run.toml", parse_overrides([f"--{name}={text}"]))
    everything = read(tmp_path / "run.toml", {name: text for name, (text, _) in OTHER.items()})
    assert read(write_run(tmp_path, toml_of(everything))) == everything


def toml_of(run: RunFile) -> str:
    """The file that says all fields of `OTHER`."""
    lines: list[str] = []
    for section in ("", *SECTIONS):
        names = [name for name in OTHER if name.rpartition(".")[0] == section]
        lines += [f"[{section}]"] * bool(section) + ['train = ["a.txt"]'] * (section == "data")
        for name in names:
            value = value_of(run, name)
            shown = list(value) if isinstance(value, tuple) else value
            text = str(shown).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(shown)
            lines.append(f"{name.rpartition('.')[2]} = {text}")
    return "\n".join(lines)


def test_every_field_says_what_it_means_below_it() -> None:
    for module in (run_file, runs):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ClassDef):
                fields = [(one, below) for one, below in zip(node.body, [*node.body[1:], None], strict=True)
                          if isinstance(one, ast.AnnAssign)]  # fmt: skip
                for one, below in fields:
                    is_said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
                    is_section = isinstance(one.annotation, ast.Name) and one.annotation.id.endswith(("Section", "Spec", "Rule"))
                    assert is_said or is_section, f"{module.__name__}: {node.name}.{ast.unparse(one.target)} is not documented"


def test_sections_are_frozen_and_keyword_only() -> None:
    for kind in (*SECTIONS.values(), RunFile, Source):
        parameters = kind.__dataclass_params__  # type: ignore[attr-defined]
        assert parameters.frozen and all(one.kw_only for one in dataclasses.fields(kind)), kind


def test_paths_of_the_file_begin_at_its_folder_and_those_of_the_command_line_where_it_is_typed(tmp_path: Path) -> None:
    (tmp_path / "a [1]").mkdir()
    (tmp_path / "a [1]" / "weights").mkdir()
    text = MINIMAL.replace('size = "3M"', 'checkpoint = "weights"\ntokenizer = "t.json"').replace(
        '"a.txt"', '"x/*.txt", "/y/*.txt"'
    )
    file = write_run(tmp_path / "a [1]", text)
    run = read(file)
    assert run.model.tokenizer == tmp_path / "a [1]" / "t.json" and run.model.checkpoint == str(tmp_path / "a [1]" / "weights")
    assert [source.files for source in run.data.train] == [(f"{tmp_path}/a [[]1]/x/*.txt",), ("/y/*.txt",)]  # as glob reads it
    elsewhere = read(file, {"data.train": "z.txt", "model.tokenizer": "u.json"}, working_directory=Path("/work here"))
    assert elsewhere.data.train[0].files == ("/work here/z.txt",) and elsewhere.model.tokenizer == Path("/work here/u.json")
    name = f"smol@{'ab' * 32}"
    assert read(file, {"model.checkpoint": name}).model.checkpoint == name
    assert read(file, {"model.checkpoint": "./absent"}, working_directory=tmp_path).model.checkpoint == f"{tmp_path}/absent"


def test_sources_are_paths_or_tables(tmp_path: Path) -> None:
    sources = '[{files = "/a", weight = 2.5}, {files = ["/b", "/c*"], messages = "chat", weight = 1}]'
    run = read(write_run(tmp_path, MINIMAL.replace('["a.txt"]', sources)))
    assert run.data.train == (
        Source(files=("/a",), weight=Fraction(5, 2)),
        Source(files=("/b", "/c*"), messages="chat", weight=Fraction(1)),
    )
    for wrong, said in (
        ('{files = "/a", wieght = 1}', "data.train[0] has the unknown field str 'wieght'"),
        ("{weight = 1}", "data.train[0].files must be a pattern or a list of patterns"),
        ('{files = "/a", weight = 0}', "data.train[0].weight must be a number above 0"),
        ('{files = "/a", weight = 1}, "/b"', "some sources have a weight and some have none"),
        ("3", "data.train[0] must be a pattern or a table"),
        ('""', "data.train[0] is a pattern of files, or a table"),
    ):
        assert said in refusal(MINIMAL.replace('"a.txt"', wrong), tmp_path)


@pytest.mark.parametrize(
    ("text", "steps"),
    [("steps = 7", 7), ("tokens = 32_768", 1), ("tokens = 32_769", 2), ("ratio = 20", 1_832), ("ratio = 1e-3", 1)],
)
def test_the_length_of_a_run_is_said_in_one_of_three_ways(text: str, steps: int, tmp_path: Path) -> None:
    run = read(write_run(tmp_path, MINIMAL.replace("steps = 10", text)))
    assert run.training.num_steps(3_000_384) == steps


def test_a_length_or_a_model_on_the_command_line_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    run = read(file, {"training.tokens": "1_000_000", "model.size": "1M"})
    assert (run.training.steps, run.training.tokens) == (None, 1_000_000)
    assert (run.model.config, run.model.size) == (None, "1M")
    with pytest.raises(
        ConfigError, match=r"exactly one of .* says how long the run is, got training\.tokens and training\.ratio"
    ):
        read(file, {"training.tokens": "10", "training.ratio": "3"})


REFUSED = {
    ("[training]", "[trainning]"): "unknown section [trainning]: did you mean training?",
    ("steps = 10", "step = 10"): "unknown field 'step' in [training]: did you mean steps?",
    ("steps = 10", "steps = 10\nlr = 1e-3"): "unknown field 'lr' in [training]: [optimizer] has one",
    ("[model]", "steps = 3\n[model]"): "unknown field 'steps' before the first section: [training] has one",
    ("[training]\nsteps = 10", ""): "exactly one of training.steps",
    ('name = "least"', 'name = "least"\nserving = 3'): "serving is a section: write [serving]",
    ('name = "least"', ""): "name is missing: it is text, and has no default",
    ('name = "least"', "name = 3"): "name is text, got '3', which is a whole number",
    ('name = "least"', 'name = ""'): "name is 1 to 200 printable letters without '@', got ''",
    ('name = "least"', 'name = "least"\nseed = -1'): "field 'seed' must be an integer from 0",
    ("steps = 10", "steps = 1.5"): "training.steps is a whole number, got '1.5', which is a number",
    ("steps = 10", "steps = true"): "training.steps is a whole number, got 'True', which is true or false",
    ("steps = 10", "steps = 0"): "field 'training.steps' must be an integer from 1 to",
    ("steps = 10", ""): "exactly one of training.steps, training.tokens, training.ratio says how long the run is, got none",
    ("steps = 10", "steps = 10\nratio = 20"): "got training.steps and training.ratio",
    ("steps = 10", "ratio = nan"): "field 'training.ratio' must be a number from 1e-06",
    ("steps = 10", 'steps = 10\nrecompute = "sometimes"'): "must be one of auto, always, never",
    ("steps = 10", 'steps = 10\ncompute = "float16"'): "must be one of float32, bfloat16",
    ("steps = 10", "steps = 10\nbatch_tokens = 10_000"): "(8 * 512 = 4096), at most 4096 times it, got 10000; 8192 would do",
    ("steps = 10", "steps = 10\nbatch_tokens = 100_000_000"): "got 100000000; 16777216 would do",
    ("steps = 10", "steps = 10\n[averaging]\ndeadline_s = 601"): "must be a number from 0.1 to 600.0, got float 601.0",
    ("steps = 10", "steps = 10\n[optimizer]\nbetas = [0.9]"): "optimizer.betas is a list of 2, each a number",
    ("steps = 10", "steps = 10\n[optimizer]\nlr = -1"): "field 'optimizer.lr' must be a number from 0 to 100, got float -1.0",
    ("steps = 10", 'steps = 10\n[optimizer]\nname = "sgd"'): "must be one of adamw, muon",
    ("steps = 10", "steps = 10\n[evaluation]\nsamples = [1]"): "evaluation.samples[0] is text, got '1'",
    ("steps = 10", "steps = 10\n[serving]\nevery_versions = 1979-05-27"): "got '1979-05-27', which is a date",
    ('size = "3M"', ""): "exactly one of model.config, model.checkpoint, model.size says the model, got none",
    ('size = "3M"', 'size = "3 M"'): "from 100k to 1000B, as 300k, 3M or 1.5B, got '3 M'",
    ('size = "3M"', 'config = "c.json"'): "model.tokenizer is missing",
    ('train = ["a.txt"]', ""): "data.train is missing: it is a list, each a pattern of files",
    ('train = ["a.txt"]', "train = []"): "data.train names no source",
    ('train = ["a.txt"]', 'train = "a.txt"'): "data.train is a list, each a pattern of files, or a table",
    ("steps = 10", "steps = "): "is no TOML",
}


@pytest.mark.parametrize("change", REFUSED, ids=[" -> ".join(change).replace("\n", " ") for change in REFUSED])
def test_what_is_wrong_in_a_file_is_one_line_that_says_what_was_expected(change: tuple[str, str], tmp_path: Path) -> None:
    said = refusal(MINIMAL.replace(*change), tmp_path)
    assert REFUSED[change] in said and str(tmp_path / "run.toml") in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainning.steps", "3"], "unknown field --trainning.steps: did you mean --training.steps?"),
        (["--training.step=3"], "unknown field --training.step: did you mean training.steps?"),
        (["--lr", "3"], "unknown field --lr: did you mean --optimizer.lr?"),
        (["--every_steps", "3"], "did you mean --evaluation.every_steps or --checkpoint.every_steps?"),
        (["training.steps", "3"], "given as --section.field VALUE, got 'training.steps'"),
        (["--seed"], "--seed has no value"),
        (["--model", "x"], "unknown field --model"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(words)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "many", "3 # no\nname = 1", "[", "1, 2"])
def test_text_that_is_no_value_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--seed is (written as in TOML|a whole number)"):
        read(write_run(tmp_path), {"seed": text})


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml cannot be read: No such file"):
        read(tmp_path / "run.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(tmp_path)
    (tmp_path / "run.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than 1024 KiB"):
        read(tmp_path / "run.toml")
    (tmp_path / "run.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is no TOML"):
        read(tmp_path / "run.toml")


def test_sizes_are_numbers_of_parameters() -> None:
    assert [parse_size(text) for text in ("300k", "3M", "1.5B", "100K")] == [300_000, 3_000_000, 1_500_000_000, 100_000]
    for text in ("", "M", "3", "3m", "-3M", "1e9", "99k", "1001B", "3M\n", "٣M"):
        with pytest.raises(ConfigError, match="number of parameters"):
            parse_size(text)
