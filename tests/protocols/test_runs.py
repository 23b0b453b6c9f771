"""A run's spec has one canonical form; the first difference is named."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from protocols import runs, weights
from protocols.errors import BadRequestError, SwarmError
from protocols.groups import Group
from protocols.ids import ModelId
from protocols.roles import Role
from protocols.runs import MAX_PASS_TOKENS, RunSpec
from protocols.units import Blocks
from tests.protocols.samples import GROUP, MANIFEST, RUN, run_specs

CANONICAL = RUN.canonical()
TABLE: dict[str, Any] = json.loads(CANONICAL)


def written(table: object) -> bytes:
    return json.dumps(table, sort_keys=True, separators=(",", ":")).encode()


def changed(path: str, value: object) -> bytes:
    table = json.loads(CANONICAL)
    *sections, key = path.split(".")
    inner = table
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return written(table)


@settings(max_examples=100)
@given(run_specs())
def test_the_canonical_form_is_read_back(spec: RunSpec) -> None:
    assert RunSpec.parse(spec.canonical()) == spec
    assert runs.difference(spec, RunSpec.parse(spec.canonical())) is None
    assert len(spec.canonical()) <= runs.MAX_RUN_BYTES


def test_the_batch_of_a_version_is_a_list_of_micro_batches() -> None:
    assert RUN.micro_batch_tokens == 1_024 and RUN.num_micro_batches == 8
    with pytest.raises(BadRequestError, match=r"multiple of a micro-batch \(8 sequences of 128 = 1024 tokens\).*got 8193"):
        replace(RUN, batch=replace(RUN.batch, batch_tokens=8_193))
    most = replace(RUN, batch=replace(RUN.batch, batch_tokens=1_024 * runs.MAX_MICRO_BATCHES))
    assert most.num_micro_batches == runs.MAX_MICRO_BATCHES
    with pytest.raises(BadRequestError, match="at most 4096 of them"):
        replace(RUN, batch=replace(RUN.batch, batch_tokens=1_024 * (runs.MAX_MICRO_BATCHES + 1)))


def test_a_run_allows_no_more_than_its_messages_carry() -> None:
    """Else it begins, and each pass or each group of it is refused."""
    largest = replace(RUN.batch, micro_batch_sequences=512, batch_tokens=MAX_PASS_TOKENS)
    assert replace(RUN, batch=largest).micro_batch_tokens == MAX_PASS_TOKENS
    with pytest.raises(BadRequestError, match="at most 65536 tokens, got 513 sequences of 128"):
        replace(RUN, batch=replace(largest, micro_batch_sequences=513, batch_tokens=513 * 128))
    group = replace(GROUP, deadline_s=runs.MAX_DEADLINE_S)
    assert Group.parse(group.encode()) == group
    with pytest.raises(BadRequestError, match="deadline_s"):
        runs.AveragingSpec(deadline_s=runs.MAX_DEADLINE_S + 1)


def test_whole_numbers_and_floats_are_one_spec() -> None:
    optimizer = runs.OptimizerSpec(lr=1, weight_decay=0, clip=-0.0, betas=(0, 0.5))
    assert (
        replace(RUN, optimizer=optimizer).canonical()
        == RunSpec.parse(
            replace(RUN, optimizer=runs.OptimizerSpec(lr=1.0, weight_decay=0.0, clip=0.0, betas=(0.0, 0.5))).canonical()
        ).canonical()
    )


def every_field() -> list[str]:
    inner = [f"{key}.{name}" for key, value in TABLE.items() if isinstance(value, dict) for name in value]
    return sorted(inner + [key for key, value in TABLE.items() if not isinstance(value, dict)])


OTHER: dict[str, object] = {
    "name": "verse",
    "seed": 8,
    "base": "ba" * 32,
    "data.digest": "db" * 32,
    "data.sequence_tokens": 64,
    "data.packing": False,
    "batch.steps": 501,
    "batch.batch_tokens": 9_216,
    "batch.micro_batch_sequences": 4,
    "optimizer.name": "muon",
    "optimizer.lr": 0.002,
    "optimizer.betas": [0.9, 0.99],
    "optimizer.eps": 1e-6,
    "optimizer.weight_decay": 0.2,
    "optimizer.clip": 2.0,
    "optimizer.momentum": 0.9,
    "schedule.shape": "wsd",
    "schedule.warmup_steps": 21,
    "schedule.final_share": 0.0,
    "schedule.decay_share": 0.3,
    "averaging.codec": "int8",
    "averaging.deadline_s": 31.0,
    "activations": "bfloat16",
    "checkpoint_every": 101,
    "serve_every": 11,
}


@pytest.mark.parametrize("path", every_field())
def test_every_field_enters_the_digest_and_its_difference_is_named(path: str) -> None:
    other = RunSpec.parse(changed(path, OTHER[path]))
    said = runs.difference(RUN, other)
    assert said is not None and said.startswith(f"{path} is ") and said.endswith(" there")
    mine, theirs = replace(MANIFEST, run=RUN), replace(MANIFEST, run=other)
    assert mine.digest != theirs.digest and weights.difference(mine, theirs) == f"run: {said}"


def test_a_difference_says_both_values() -> None:
    assert runs.difference(RUN, replace(RUN, seed=8)) == "seed is 7 here, 8 there"
    assert runs.difference(RUN, replace(RUN, base="ba" * 32)) == "base is '' here, babababababa… there"
    assert weights.difference(MANIFEST, replace(MANIFEST, run=RUN)) == "theirs is a training run, the other is not"


def test_a_machine_without_data_can_compare_but_begins_no_run() -> None:
    here = replace(RUN, data=replace(RUN.data, digest=""))
    assert runs.difference(here, RUN) is None and runs.difference(RUN, here) is None
    assert runs.difference(here, replace(RUN, seed=8)) is not None
    with pytest.raises(BadRequestError, match=r"data\.digest.*a machine that has the data"):
        here.canonical()


WRONG: dict[str, bytes] = {
    "empty": b"",
    "not JSON": CANONICAL[:-1],
    "not UTF-8": CANONICAL.replace(b"prose", b"pro\xffse"),
    "a list": b"[]",
    "spaces": CANONICAL.replace(b":7", b": 7"),
    "a line end": CANONICAL + b"\n",
    "a field twice": CANONICAL.replace(b'"seed":7', b'"seed":7,"seed":7'),
    "unsorted": b'{"seed":7,' + CANONICAL.replace(b'"seed":7,', b"")[1:],
    "an escape that is not needed": CANONICAL.replace(b"prose", b"\\u0070rose"),
    "4,000 deep": CANONICAL.replace(b'"prose"', b"[" * 4_000 + b"]" * 4_000),
    "a number of 7,000 digits": CANONICAL.replace(b'"seed":7', b'"seed":' + b"7" * 7_000),
    "a field of the future": changed("zzz", 1),
    "a field of the future in a section": changed("optimizer.zzz", 1),
    "no seed": written({key: value for key, value in TABLE.items() if key != "seed"}),
    "no section": written({key: value for key, value in TABLE.items() if key != "batch"}),
    "a whole learning rate": CANONICAL.replace(b'"lr":0.001', b'"lr":1'),
    "NaN": CANONICAL.replace(b'"lr":0.001', b'"lr":NaN'),
    "infinity": CANONICAL.replace(b'"clip":1.0', b'"clip":1e999'),
    "minus 0": CANONICAL.replace(b'"clip":1.0', b'"clip":-0.0'),
    "no digest of data": changed("data.digest", ""),
    "half a digest of data": changed("data.digest", "da" * 16),
    "a digest in capitals": changed("data.digest", "DA" * 32),
    "a digest with a line end": changed("data.digest", "d" * 63 + "\n"),
    "a base of no model": changed("base", "x"),
    "no name": changed("name", ""),
    "a name with an @": changed("name", "prose@1"),
    "a name with an escape": changed("name", "\x1b[31m"),
    "a name of 201 letters": changed("name", "x" * 201),
    "a seed below 0": changed("seed", -1),
    "a seed as text": changed("seed", "7"),
    "true as a seed": changed("seed", True),
    "a sequence of one token": changed("data.sequence_tokens", 1),
    "packing as a number": changed("data.packing", 1),
    "a section as a list": changed("data", []),
    "a section as text": changed("optimizer", "adamw"),
    "no steps": changed("batch.steps", 0),
    "a batch of half a micro-batch": changed("batch.batch_tokens", 512),
    "a batch of 4,097 micro-batches": changed("batch.batch_tokens", 1_024 * 4_097),
    "no sequences": changed("batch.micro_batch_sequences", 0),
    "an unknown optimizer": changed("optimizer.name", "sgd"),
    "an optimizer as a list": changed("optimizer.name", ["adamw"]),
    "one beta": changed("optimizer.betas", [0.9]),
    "three betas": changed("optimizer.betas", [0.9, 0.9, 0.9]),
    "a beta of 1": changed("optimizer.betas", [0.9, 1.0]),
    "betas as text": changed("optimizer.betas", "ab"),
    "betas as a map": changed("optimizer.betas", {"0": 0.9, "1": 0.95}),
    "a momentum of 1": changed("optimizer.momentum", 1.0),
    "no eps": changed("optimizer.eps", 0.0),
    "an unknown shape": changed("schedule.shape", "linear"),
    "a warm-up of half a step": changed("schedule.warmup_steps", 0.5),
    "a warm-up longer than the run": changed("schedule.warmup_steps", 501),
    "a share above 1": changed("schedule.final_share", 1.5),
    "an unknown codec": changed("averaging.codec", "int4"),
    "no deadline": changed("averaging.deadline_s", 0.0),
    "unknown activations": changed("activations", "float64"),
    "checkpoints below 0": changed("checkpoint_every", -1),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_spec_out_of_bounds_is_refused(what: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        RunSpec.parse(WRONG[what])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    line = b"run " + WRONG[what] + b"\n"
    with pytest.raises(SwarmError):
        weights.Manifest.from_canonical(MANIFEST.canonical().replace(b"file ", line + b"file ", 1))


def test_the_helper_of_these_tests_writes_valid_specs() -> None:
    """Or every refusal above would be one of the helper's own."""
    assert RunSpec.parse(written(TABLE)) == RUN
    line = b"run " + CANONICAL + b"\n"
    assert weights.Manifest.from_canonical(MANIFEST.canonical().replace(b"file ", line + b"file ", 1)).run == RUN


def test_a_long_spec_is_not_even_read() -> None:
    data = b"[" * (1 << 20)
    tracemalloc.start()
    with pytest.raises(BadRequestError, match="at most 8192 bytes"):
        RunSpec.parse(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_the_line_of_a_run_stands_once_behind_the_config() -> None:
    config, line = MANIFEST.canonical().split(b"\n")[1], b"run " + CANONICAL
    for wrong in (config + b"\n" + line + b"\n" + line, line + b"\n" + config):
        with pytest.raises(BadRequestError):
            weights.Manifest.from_canonical(MANIFEST.canonical().replace(config, wrong, 1))


def test_a_role_is_a_stage_with_a_unit_or_another_kind_without() -> None:
    run = ModelId("prose", "cd" * 32)
    assert str(Role("stage", run, Blocks(0, 2))) == "stage decoder/0:2" and str(Role("keeper", run)) == "keeper"
    for kind, unit in (("stage", None), ("trainer", Blocks(0, 2)), ("judge", None), ("judge", Blocks(0, 2))):
        with pytest.raises(BadRequestError, match="a role is a stage with a unit, a trainer or a keeper"):
            Role(kind, run, unit)
