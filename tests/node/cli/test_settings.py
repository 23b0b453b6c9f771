"""A checkpoint's settings hold in the commands as in transformers.

The greedy text is equal with and without guesses, and thin as full; else the exit code is 4.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from node.cli.ask import generate
from node.cli.ask.full import FullSpeaker
from node.cli.ask.speaking import new_out
from node.cli.flags.asking import Sampling
from node.cli.flags.speculation import Speculation
from protocols.errors import CheckpointError, ConfigError, ModelNotSupportedError, SwarmError
from swarm.thin.defaults import read_defaults
from swarm.thin.settings import Wanted
from tests.families import add_byte_tokenizer, make_checkpoint
from tests.swarm.client.local_backend import LocalBackend, local_model

PROMPT, NEW = "abcabcabcabc", 24
FILES = ("generation_config.json", "config.json")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_checkpoint("llama", tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(directory)
    return directory


def with_settings(plain: Path, folder: Path, settings: dict[str, Any], file: str = FILES[0]) -> Path:
    """A copy that says `settings` in `file`; without the other file, if that is config.json."""
    path = shutil.copytree(plain, folder / "tiny", dirs_exist_ok=True)
    if file != FILES[0]:
        (path / FILES[0]).unlink()
    text = {**json.loads((path / file).read_text()), "eos_token_id": 300, **settings}
    (path / file).write_text(json.dumps(text))
    return path


def sampling(speculate: int | None = None, **changes: Any) -> Sampling:
    given: dict[str, Any] = {"max_new_tokens": NEW, "temperature": None, "top_p": None, "top_k": None, "seed": None, **changes}
    return Sampling(speculation=Speculation(tokens=speculate), **given)


def answer(path: Path, how: Sampling) -> tuple[str, LocalBackend]:
    """What `swarm generate` writes."""
    model, backend = local_model(path, 2)
    speaker = FullSpeaker(model, how)
    out = new_out(speaker)
    how.sow()
    speaker.answer(speaker.encode(PROMPT), out, NEW)
    return out.text, backend


def theirs(path: Path, **settings: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    output = AutoModelForCausalLM.from_pretrained(path).generate(ids, max_new_tokens=NEW, **settings)
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text


STATED: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 2.0},
    "outputs": {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True, "output_hidden_states": True},
    "a cache of this machine": {"prefill_chunk_size": 3, "max_cache_len": 9},
    "guesses": {"prompt_lookup_num_tokens": 3, "is_assistant": True, "assistant_ensemble_weight": 0.5, "use_mtp": True},
    "other searches": {"penalty_alpha": 0.6, "top_k": 4, "dola_layers": "low"},
    "an end by time or length": {"max_time": 0.0, "max_length": 3, "max_new_tokens": 2},
    "sampling": {"do_sample": True, "temperature": 0.3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5},
    "sampling without temperature": {"do_sample": True, "temperature": 0.0},
}


@pytest.fixture(scope="module")
def greedy(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the checkpoint says to PROMPT without settings."""
    return theirs(with_settings(plain, tmp_path_factory.mktemp("without"), {}), do_sample=False)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", STATED)
def test_a_key_of_the_contract_changes_no_text(name: str, file: str, plain: Path, greedy: str, tmp_path: Path) -> None:
    path = with_settings(plain, tmp_path, STATED[name], file)
    for speculate in (None, 4):
        text, backend = answer(path, sampling(speculate))
        assert text == greedy
        assert backend.num_opened == 1 and sum(sum(call.counts) for call in backend.calls[1:]) >= NEW - 1  # K/V were used
        assert (max(call.counts[0] for call in backend.calls[1:]) > 1) == bool(speculate)  # guessed if and only if asked to
    chosen = read_defaults(path).sampling(sampling().wanted, None)
    assert chosen == read_defaults(plain).sampling(Wanted(), None)


@pytest.mark.parametrize("is_for_chats", [False, True])
def test_an_answer_without_text_is_told(
    is_for_chats: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's first token is the end of text, as chat models give it to a question that is no chat."""
    tokenizer = AutoTokenizer.from_pretrained(plain)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    first = int(AutoModelForCausalLM.from_pretrained(plain)(ids).logits[0, -1].argmax())
    path = with_settings(plain, tmp_path, {"eos_token_id": first})
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(first)]})
    tokenizer.save_pretrained(path)
    if is_for_chats:
        (path / "chat_template.jinja").write_text("{{ messages }}")
    speaker = FullSpeaker(local_model(path, 2)[0], sampling())
    monkeypatch.setattr(generate, "open_speaker", lambda *_: contextlib.nullcontext(speaker))
    generate.run(SimpleNamespace(model="my tiny"), sampling(), PROMPT, with_stats=False, is_thin=False)  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert not shown.out.strip() and "ended its answer at once" in shown.err
    assert ("swarm chat 'my tiny'" in shown.err) == is_for_chats


def test_an_answer_of_white_space_is_told(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (space,) = AutoTokenizer.from_pretrained(plain)(" ", add_special_tokens=False).input_ids
    path = with_settings(plain, tmp_path, {"suppress_tokens": [number for number in range(256) if number != space]})
    speaker = FullSpeaker(local_model(path, 2)[0], sampling())
    monkeypatch.setattr(generate, "open_speaker", lambda *_: contextlib.nullcontext(speaker))
    generate.run(SimpleNamespace(model="tiny"), sampling(), PROMPT, with_stats=False, is_thin=False)  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert shown.out == " " * NEW + "\n" and "the answer has no text: its 24 tokens are white space" in shown.err


@pytest.mark.parametrize("where", ["in the answer", "in the prompt"])
@pytest.mark.parametrize("speculate", [None, 4])
def test_stop_strings_end_an_answer_where_transformers_ends_it(
    where: str, speculate: int | None, plain: Path, tmp_path: Path
) -> None:
    """One over two tokens of the answer ends it; one that only the prompt has does not."""
    said = theirs(with_settings(plain, tmp_path / "without", {}), do_sample=False)
    found = re.search("[A-Za-z]{2}", said)
    assert found and "bca" not in said
    stop = found[0] if where == "in the answer" else "bca"
    path = with_settings(plain, tmp_path, {"stop_strings": [stop, "never said"]})
    expected = theirs(path, do_sample=False, tokenizer=AutoTokenizer.from_pretrained(path))
    assert answer(path, sampling(speculate))[0] == expected
    assert expected == (said[: found.end()] if where == "in the answer" else said) and found.end() < len(said)


@pytest.mark.parametrize("speculate", [None, 4])
def test_a_setting_of_transformers_own_counts(speculate: int | None, plain: Path, tmp_path: Path) -> None:
    for file in FILES:
        path = with_settings(plain, tmp_path / file, {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}, file)
        expected = theirs(path, do_sample=False)
        assert answer(path, sampling(speculate))[0] == expected != theirs(plain, do_sample=False)


REFUSED: dict[str, dict[str, Any]] = {
    "constraints": {"constraints": [1]},
    "token_healing": {"token_healing": True},
    "num_return_sequences": {"num_return_sequences": 2},
    "stop_strings": {"stop_strings": 7},
    "temperature": {"temperature": "warm"},
    "eos_token_id": {"eos_token_id": "x"},
    "repetition_penalty": {"repetition_penalty": -1},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_command_can_follow_is_exit_code_4_thin_and_full(name: str, plain: Path, tmp_path: Path) -> None:
    path = with_settings(plain, tmp_path, REFUSED[name])
    for ask in (lambda: answer(path, sampling()), lambda: read_defaults(path)):
        with pytest.raises(SwarmError, match=name) as refused:
            ask()
        assert refused.value.exit_code == 4


def test_what_transformers_dislikes_is_the_checkpoints_fault(plain: Path, tmp_path: Path) -> None:
    path = with_settings(plain, tmp_path, {"no_repeat_ngram_size": "3"})
    with pytest.raises(CheckpointError, match=r"refuses the checkpoint's generation_config.json \(no_repeat_ngram_size\)"):
        answer(path, sampling())
    path = with_settings(plain, tmp_path, {"guidance_scale": 1.5})
    with pytest.raises(ModelNotSupportedError, match=r"guidance_scale.*without --speculate"):
        answer(path, sampling(4))


SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.4, "top_k": 5, "min_p": 0.05},
    {"top_k": 0},
]


@pytest.mark.parametrize("own", SAMPLED)
def test_chat_draws_as_transformers_does_by_the_models_own_settings(own: dict[str, Any], plain: Path, tmp_path: Path) -> None:
    path = with_settings(plain, tmp_path, {"do_sample": True, **own})
    torch.manual_seed(3)
    expected = theirs(path)
    assert answer(path, sampling(seed=3, as_model_says=True))[0] == expected
    chosen = read_defaults(path).sampling(sampling(as_model_says=True).wanted, 3)
    assert (chosen.temperature, chosen.top_k) == (own.get("temperature", 1.0), own.get("top_k", 50))
    assert (chosen.top_p, chosen.min_p) == (own.get("top_p", 1.0), own.get("min_p", 0.0))


def test_flags_override_and_greedy_is_greedy(plain: Path, tmp_path: Path) -> None:
    path = with_settings(plain, tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    settings = read_defaults(path).settings
    chat, generate = sampling(as_model_says=True).wanted, sampling().wanted
    (said,) = settings.remarks(chat)
    assert said == "sampling as the model's settings say: temperature 0.6, top_p 0.9; --greedy picks the likeliest"
    assert settings.sampling(generate) == {} and settings.remarks(generate) == []
    own = sampling(as_model_says=True, temperature=1.3)
    assert settings.sampling(own.wanted) == {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "min_p": 0.0}
    assert settings.remarks(own.wanted) == ["sampling as the model's settings say: top_p 0.9; --greedy picks the likeliest"]
    for greedy in (sampling(as_model_says=True, is_greedy=True), sampling(as_model_says=True, temperature=0.0)):
        assert settings.sampling(greedy.wanted) == {} and settings.remarks(greedy.wanted) == []
        assert answer(path, greedy)[0] == theirs(path, do_sample=False)
    for flag in ({"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 5}):
        with pytest.raises(ConfigError, match="--greedy picks the likeliest token and --t"):
            sampling(is_greedy=True, **flag)
