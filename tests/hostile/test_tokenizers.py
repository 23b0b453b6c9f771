"""Untrusted tokenizers and templates cost a limited process and one line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints.layout import MANIFEST
from swarm.client import tokenizer as full
from swarm.client.model import SwarmModelForCausalLM
from swarm.thin.text import TextOut
from swarm.thin.tokenizing import templates
from swarm.thin.tokenizing.sandbox import CpuLimits, Sandbox, SandboxEndedError
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.thin.tokenizing.templates import conversation_ids

HONEST: dict[str, Any] = {
    **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
    **{"version": "1.0", "added_tokens": []},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": [], "unk_token": None},
}
DEEP = 6


def sequence(kind: str, depth: int) -> dict[str, Any]:
    """Each replaces one letter by a hundred: 100 ** depth of them."""
    return {"type": "Sequence", kind: [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * depth}


AT_OPENING: dict[str, dict[str, Any]] = {
    "panic of a merge": {"model": {**HONEST["model"], "vocab": {"a": 0, "ab": 1, "b": 2}, "merges": [["a", "b"]],
                                   "continuing_subword_prefix": "far too long"}},
    "out of memory by a map of characters": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA/w=="}},
}  # fmt: skip
AT_ENCODING: dict[str, dict[str, Any]] = {
    "memory": {"normalizer": sequence("normalizers", DEEP)},
    "panic": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "regular expression": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    },
    "more tokens than were asked for": {"normalizer": sequence("normalizers", 2)},
}
AT_DECODING: dict[str, dict[str, Any]] = {
    "time": {"decoder": sequence("decoders", DEEP)},
    "panic": {"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}},
    "more text than was asked for": {"decoder": sequence("decoders", 3)},
}


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    found = Sandbox("their-model", limits=CpuLimits(render_s=0.5, decode_s=0.5))
    yield found
    found.close()


def write(folder: Path, changes: dict[str, Any], template: str | None = None) -> Path:
    (folder / "tokenizer.json").write_text(json.dumps({**HONEST, **changes}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def until_asked(sandbox: Sandbox) -> None:
    ends_at_s = time.monotonic() + 20
    while not sandbox._lock.locked():
        assert time.monotonic() < ends_at_s
        time.sleep(0.01)


def check_error(error: BaseException) -> None:
    """It names the model and what to do, in one line."""
    said = str(error)
    assert "\n" not in said and len(said) < 600
    if isinstance(error, SandboxEndedError):
        assert "the tokenizer of their-model" in said and "choose other weights with NAME@DIGEST" in said
    else:
        assert isinstance(error, ModelNotSupportedError | CheckpointError)


@pytest.mark.parametrize("changes", AT_OPENING.values(), ids=AT_OPENING)
def test_what_ends_the_library_while_it_reads_ends_a_process_of_its_own(
    changes: dict[str, Any], tmp_path: Path, sandbox: Sandbox
) -> None:
    with pytest.raises(SandboxEndedError) as met:
        SandboxedTokenizer(sandbox, write(tmp_path, changes))
    check_error(met.value)


@pytest.mark.parametrize("changes", AT_ENCODING.values(), ids=AT_ENCODING)
def test_what_a_text_sets_off_is_one_error_and_the_next_request_is_answered(
    changes: dict[str, Any], tmp_path: Path, sandbox: Sandbox
) -> None:
    tokenizer = SandboxedTokenizer(sandbox, write(tmp_path, changes))
    with pytest.raises(ModelNotSupportedError) as met:
        tokenizer.encode("a" * 40 + "!")
    check_error(met.value)
    assert tokenizer.decode([0, 1]) == "a b"  # by a new process, with the same tokenizer


@pytest.mark.parametrize("changes", AT_DECODING.values(), ids=AT_DECODING)
def test_what_an_answer_sets_off_is_one_error(changes: dict[str, Any], tmp_path: Path, sandbox: Sandbox) -> None:
    tokenizer = SandboxedTokenizer(sandbox, write(tmp_path, changes))
    out = TextOut(tokenizer, lambda piece: None)
    out.put([0])
    with pytest.raises(ModelNotSupportedError) as met:
        out.put([0] * 20)
    check_error(met.value)
    assert tokenizer.encode("ab!") == [0, 1, 2]


async def test_a_template_without_end_holds_nobody_up_who_gives_up(tmp_path: Path, sandbox: Sandbox) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = SandboxedTokenizer(sandbox, write(tmp_path, {}, endless))
    messages = [{"role": "user", "content": "ab"}]
    with pytest.raises(ModelNotSupportedError, match=r"cannot be rendered: it needs more than \d s of processor time"):
        await conversation_ids(tokenizer, messages)
    with contextlib.closing(Sandbox("their-model", limits=CpuLimits(render_s=60.0))) as patient:
        tokenizer = SandboxedTokenizer(patient, tmp_path)
        waiting = asyncio.create_task(conversation_ids(tokenizer, messages))
        await asyncio.to_thread(until_asked, patient)
        waiting.cancel()  # as Ctrl-C does
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert await asyncio.to_thread(tokenizer.encode, "ab") == [0, 1]  # not behind the 60 s of the other


def test_a_process_that_is_killed_is_started_again_and_none_is_left(tmp_path: Path, sandbox: Sandbox) -> None:
    tokenizer = SandboxedTokenizer(sandbox, write(tmp_path, {}))
    first = sandbox._process
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    assert tokenizer.encode("ab") == [0, 1]
    second = sandbox._process
    assert second is not None and second is not first
    sandbox.close()
    assert not Path(f"/proc/{first.pid}").exists() and not Path(f"/proc/{second.pid}").exists()


def test_the_full_client_runs_templates_and_tokenizers_of_peers_in_the_same_process(tmp_path: Path) -> None:
    """Before, a template that doubles a text forty times took the client's own memory, and a loop within a loop its time."""
    doubling = "{% set ns = namespace(t='x') %}{% for a in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}"
    folder = write(tmp_path, {}, doubling)
    model = SimpleNamespace(
        remote=SimpleNamespace(path=folder, backend=SimpleNamespace(model=SimpleNamespace(name="their-model"))),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    own = full.of_model(model)
    (folder / MANIFEST).write_bytes(b"")
    fetched = full.of_model(model)
    assert isinstance(own, full.OwnTokenizer) and isinstance(fetched, SandboxedTokenizer)
    for tokenizer in (own, fetched):
        with pytest.raises(ModelNotSupportedError, match=r"cannot be rendered: (MemoryError|it needs more)"):
            templates.ids_of(tokenizer, [{"role": "user", "content": "ab"}])
        assert tokenizer.encode("ab!") == [0, 1, 2] and tokenizer.decode_all([[0], [1]]) == ["a", "b"]
        tokenizer.sandbox.close()


# --- what transformers reads, for the Python API and for forms that no other reader has


class Fetched:
    """Of a model that came from peers, what its tokenizer needs."""

    def __init__(self, folder: Path) -> None:
        (folder / MANIFEST).write_bytes(b"")
        self.remote = SimpleNamespace(path=folder, backend=SimpleNamespace(model=SimpleNamespace(name="their-model")))

    @property
    def tokenizer(self) -> Any:
        model: Any = self
        return SwarmModelForCausalLM.tokenizer_if_any(model)


def configure(folder: Path, **config: Any) -> Path:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("only_transformers", [False, True])
def test_a_tokenizer_that_the_python_api_hands_out_was_tried_in_a_sandbox_first(tmp_path: Path, only_transformers: bool) -> None:
    folder = write(tmp_path, AT_ENCODING["memory"])
    if only_transformers:  # no thin client reads such a one
        configure(folder, tokenizer_class="PreTrainedTokenizerFast", fix_mistral_regex=True)
    model = Fetched(folder)
    with pytest.raises(SandboxEndedError, match="more memory") as met:
        _ = model.tokenizer
    check_error(met.value)
    write(tmp_path, {})
    assert model.tokenizer("ab").input_ids == [0, 1]


def test_a_file_that_only_transformers_reads_is_tried_too(tmp_path: Path) -> None:
    """Beside a harmless tokenizer.json, which is all that a thin client reads."""
    folder = configure(write(tmp_path, {}), tokenizer_class="CTRLTokenizer")
    (folder / "merges.txt").write_text("#version\n")
    (folder / "vocab.json").write_text("[" * 100_000)
    with pytest.raises(SandboxEndedError, match="RecursionError") as met:
        _ = Fetched(folder).tokenizer
    check_error(met.value)


def test_a_form_that_only_transformers_reads_is_used_by_the_commands_after_a_trial(tmp_path: Path) -> None:
    folder = configure(tmp_path, tokenizer_class="ByT5Tokenizer")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 300}))
    found = full.of_model(Fetched(folder))
    assert isinstance(found, full.OwnTokenizer)
    ids = found.encode("Grüße")
    assert ids == AutoTokenizer.from_pretrained(folder)("Grüße").input_ids and found.decode(ids) == "Grüße"
    assert found.decode_all([ids[:2], ids]) == ["Gr", "Grüße"]
    found.sandbox.close()


def test_an_honest_tokenizer_of_a_large_vocabulary_has_room(tmp_path: Path) -> None:
    """262,144 tokens, as the largest in use; the limit of memory is beside what the libraries take."""
    vocab = {f"token {number:06}": number for number in range(262_144)}
    folder = write(tmp_path, {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "token 000000"}})
    assert len(Fetched(folder).tokenizer) == 262_144
