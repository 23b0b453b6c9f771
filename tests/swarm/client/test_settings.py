"""A checkpoint's settings give transformers' tokens, or a refusal.

The refusal comes before a byte is sent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, CompileConfig

from protocols.errors import BadRequestError, CheckpointError
from swarm.client import contract
from tests.logged import logged
from tests.swarm.client.local_backend import LocalBackend, local_model
from tests.swarm.client.test_stream import PROMPT, byte_tokenizer

IDS = torch.tensor([PROMPT])
GREEDY: dict[str, Any] = dict(max_new_tokens=8, do_sample=False)

GENERATION, MODEL = "generation_config.json", "config.json"
STATED: dict[str, Any] = dict(
    use_cache=True, num_beams=1, num_return_sequences=1, return_dict_in_generate=False, stop_strings=None,
    output_attentions=False, output_hidden_states=False, output_scores=False, output_logits=False,
    prompt_lookup_num_tokens=None, assistant_early_exit=None, cache_implementation=None,
)  # fmt: skip
"""What the commands state, so that a checkpoint cannot change what they get."""

SAME: dict[str, dict[str, Any]] = {
    "no cache": {GENERATION: {"use_cache": False}},
    "no cache, said by the model's config": {MODEL: {"use_cache": False}, GENERATION: {}},
    "beams": {GENERATION: {"num_beams": 3}},
    "several beams returned": {GENERATION: {"num_beams": 3, "num_return_sequences": 2}},
    "a dictionary with scores": {GENERATION: {"return_dict_in_generate": True, "output_scores": True}},
    "attentions that would not be seen": {GENERATION: {"output_attentions": True, "output_hidden_states": True}},
    "a static cache": {GENERATION: {"cache_implementation": "static", "disable_compile": True}},
    "guesses": {GENERATION: {"prompt_lookup_num_tokens": 3}},
    "the model's own first blocks as an assistant": {GENERATION: {"assistant_early_exit": 2}},
    "chunked prefill": {GENERATION: {"prefill_chunk_size": 4}},
    "guidance": {GENERATION: {"guidance_scale": 1.5}},
}


@pytest.fixture
def changed(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """The llama checkpoint with other values in its JSON files; an empty dictionary takes the file away."""

    def change(files: dict[str, Any]) -> Path:
        for file in checkpoint("llama").iterdir():
            values = files.get(file.name)
            if values is None:
                (tmp_path / file.name).symlink_to(file)
            elif values:
                (tmp_path / file.name).write_text(json.dumps(json.loads(file.read_text()) | values))
        return tmp_path

    return change


def models(path: Path) -> tuple[Any, Any, LocalBackend]:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), *local_model(path, 2)


def tokens(result: Any) -> list[list[int]]:
    ids: torch.Tensor = result if isinstance(result, torch.Tensor) else result.sequences
    return ids.tolist()


@pytest.mark.parametrize("case", SAME)
def test_a_checkpoints_settings_change_no_token(
    case: str, changed: Callable[[dict[str, Any]], Path], reference: Callable[[str], Any]
) -> None:
    """By themselves they do what they do in transformers; what a caller states wins, with a cache of its own, too."""
    theirs, ours, backend = models(changed(SAME[case]))
    assert tokens(ours.generate(IDS, **GREEDY)) == tokens(theirs.generate(IDS, **GREEDY))
    backend.calls.clear()
    stated = GREEDY | STATED | ({"guidance_scale": None} if case == "guidance" else {})
    got = ours.generate(IDS, past_key_values=ours.new_cache(), **stated)
    assert tokens(got) == tokens(reference("llama").generate(IDS, **GREEDY))
    assert sum(sum(call.counts) for call in backend.calls) == 11 + 7  # each token was fed once: the cache was used


@pytest.mark.parametrize("where", ["no cache", "no cache, said by the model's config", "no cache in the call"])
def test_what_needs_a_cache_is_refused_where_caches_are_off(where: str, changed: Callable[[dict[str, Any]], Path]) -> None:
    """transformers feeds the whole text behind what the cache holds, and answers with other text."""
    _theirs, ours, backend = models(changed(SAME.get(where, {})))
    said = {} if where in SAME else {"use_cache": False}
    with pytest.raises(BadRequestError, match=r"use_cache is off .*past_key_values.*pass use_cache=True"):
        ours.generate(IDS, past_key_values=ours.new_cache(), **GREEDY, **said)
    for guess in (dict(prompt_lookup_num_tokens=3), dict(assistant_model=ours), dict(assistant_early_exit=2)):
        with pytest.raises(BadRequestError, match=r"use_cache is off .*speculation.*pass use_cache=True"):
            ours.generate(IDS, **GREEDY, **guess, **said)
    assert backend.calls == [] and backend.num_opened == 0


@pytest.mark.parametrize(
    "values", [{"num_return_sequences": 2}, {"compile_config": {"mode": "default"}}, {"max_new_tokens": "many"}], ids=str
)
def test_settings_that_transformers_refuses_are_the_checkpoints_fault(
    values: dict[str, Any], changed: Callable[[dict[str, Any]], Path]
) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config.json of .* cannot be used: .*; correct or remove it"):
        local_model(changed({GENERATION: values}), 2)


def test_stop_strings_of_a_checkpoint_use_its_tokenizer(changed: Callable[[dict[str, Any]], Path]) -> None:
    """transformers wants the tokenizer from the caller."""
    path = changed({})
    theirs, _ours, _backend = models(path)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(path)
    usual = theirs.generate(IDS, **GREEDY)
    stop = next(text for token in usual[0, 11:18] if (text := tokenizer.decode([token])).isascii())
    (path / GENERATION).unlink()
    (path / GENERATION).write_text(json.dumps({"stop_strings": [stop], "eos_token_id": 2, "pad_token_id": 0}))
    theirs, ours, _backend = models(path)
    expected = theirs.generate(IDS, **GREEDY, tokenizer=tokenizer)
    assert tokens(ours.generate(IDS, **GREEDY)) == tokens(expected)
    assert expected.shape[1] < usual.shape[1]


def test_what_has_no_effect_is_said_once(pair: Callable[[str], Any], caplog: pytest.LogCaptureFixture) -> None:
    theirs, ours, _backend = pair("llama")
    contract._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger=contract.log.name):
        for _ in range(2):
            got = ours.generate(
                IDS, **GREEDY, cache_implementation="static", compile_config=CompileConfig(), disable_compile=True
            )
    said = [line.partition(" has no effect")[0] for line in logged(caplog, contract.log)]
    assert said == ["cache_implementation", "compile_config"]
    assert tokens(got) == tokens(theirs.generate(IDS, **GREEDY))
