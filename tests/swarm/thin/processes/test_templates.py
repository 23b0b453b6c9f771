"""Tokenizers and chat templates give transformers' ids and text.

Without transformers; and a hostile template costs a second, not the machine.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.thin.defaults import read_defaults
from swarm.thin.settings import Wanted
from swarm.thin.tokenizing import sandbox
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer
from swarm.thin.tokenizing.templates import conversation_ids, render

MESSAGES = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Grüße, 世界 🙂 'quoted'"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And now?"},
]
CHATML = (
    "{% for message in messages %}\n    {% if loop.first and message.role != 'system' %}<s>none{% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
RICH = (
    "{{ bos_token }}{% set ns = namespace(count=0) %}{% for message in messages %}{% if message.role == 'system' %}"
    "{% continue %}{% endif %}{% set ns.count = ns.count + 1 %}{% generation %}[{{ ns.count }}:{{ message | tojson }}]"
    "{% endgeneration %}{% endfor %}{{ dict(a=1).items() | list }}{{ eos_token }}"
)


SANDBOX = Sandbox("tiny")


def opened(folder: Path) -> SandboxedTokenizer:
    return SandboxedTokenizer(SANDBOX, folder)


def make(folder: Path, template: str | None, **changes: object) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    theirs = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    theirs.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    theirs.chat_template = template
    theirs.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_text_becomes_the_same_ids_and_back(tmp_path: Path, changes: dict[str, object]) -> None:
    theirs, ours = make(tmp_path, None, **changes), opened(tmp_path)
    for text in ("Grüße, 世界 🙂", "a</s>b<|im_end|>", "", " spaces  and\nlines .", "I 'm ."):
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids[1:3]) == theirs.decode(ids[1:3], skip_special_tokens=True)  # half a letter


UNASKED = (
    "{{ tools is none }}{{ tools is defined }}{{ documents is none }}{% if not x is defined %}{{ dict.fromkeys([1, 2], 3) }}{% endif %}"
    "{% set ns = namespace({'b': 2}, self=1) %}{{ ns.self + ns.b }}"
)
"""Variables that the caller does not set are none, not undefined; with those that transformers adds."""


@pytest.mark.parametrize("template", [CHATML, RICH, UNASKED, None], ids=["chatml", "rich", "unasked", "none"])
async def test_a_conversation_is_rendered_as_transformers_does(tmp_path: Path, template: str | None) -> None:
    theirs, ours = make(tmp_path, template), opened(tmp_path)
    got = await conversation_ids(ours, MESSAGES)
    if template is None:
        assert ours.decode(got).endswith("User: And now?\nAssistant:")
        return
    text = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert got == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "processor time"),
        (
            "{% set ns = namespace(t='x') %}{% for a in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}",
            "[Mm]emory|processor time",
        ),
        ("{{ 'x' * 9999999999 }}", "MemoryError"),
        ("{% for a in range(99999) %}{{ 'x' * 100 }}{% endfor %}", "the limit is"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|Security"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ '\\ud800' }}", "not Unicode"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "cannot"),
        ("{% set ns = namespace(_a=1) %}", "SecurityError"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{% include '/etc/passwd' %}", "TypeError|no loader"),
    ],
)
async def test_a_hostile_or_broken_template_is_an_error_and_nothing_else(
    template: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "LEAST_WAIT_S", 300.0)  # processor time is what limits it, on a busy machine too
    with pytest.raises(ModelNotSupportedError, match=f"chat template cannot be rendered: .*({reason})"):
        render(SANDBOX, template, MESSAGES, {})


async def test_what_a_template_refuses_is_said_in_its_own_words() -> None:
    with pytest.raises(ModelNotSupportedError, match=r"refuses this conversation: 'roles must alternate'; .*--system"):
        render(SANDBOX, "{{ raise_exception('roles must\n alternate') }}", MESSAGES, {})
    with pytest.raises(ModelNotSupportedError) as refused:
        render(SANDBOX, "{{ raise_exception('\x1b[2J' ~ 'x' * 5000) }}", MESSAGES, {})
    assert len(str(refused.value)) < 600 and "\x1b" not in str(refused.value)


def test_a_checkpoint_without_tokenizer_json_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupportedError, match=r"no tokenizer\.json"):
        opened(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no tokenizer"):
        opened(tmp_path)


def write(folder: Path, config: dict[str, object], generation: dict[str, object] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_what_the_checkpoint_says_about_generating(tmp_path: Path) -> None:
    config: dict[str, object] = {"vocab_size": 9, "n_embd": 4, "n_positions": 64, "eos_token_id": 2}
    read = read_defaults(write(tmp_path, config))
    assert (set(read.ends), read.vocab_size, read.hidden_size, read.max_positions) == ({2}, 9, 4, 64)
    own: dict[str, object] = {
        "eos_token_id": [5, 6],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "do_sample": True,
    }
    read = read_defaults(write(tmp_path, config, own))
    assert read.ends == {5, 6}
    greedy = read.sampling(Wanted(), None)
    assert (
        greedy.is_greedy and greedy.repetition_penalty == 1.1 and read.sampling(Wanted(asked={"temperature": 0.0}), 1).is_greedy
    )
    drawn = read.sampling(Wanted(asked={"temperature": 0.5}), 3)
    assert (drawn.temperature, drawn.top_p, drawn.top_k, drawn.seed) == (0.5, 0.8, 0, 3)
    assert read.sampling(Wanted(asked={"top_k": 4}), None).top_k == 4


def test_a_setting_that_would_change_tokens_unseen_is_refused(tmp_path: Path) -> None:
    read = read_defaults(write(tmp_path, {"vocab_size": 9}, {"no_repeat_ngram_size": 3}))
    with pytest.raises(ModelNotSupportedError, match="no_repeat_ngram_size to 3, which a thin client does not know"):
        read.sampling(Wanted(), None)
    with pytest.raises(ModelNotSupportedError, match="vocab_size"):
        read_defaults(write(tmp_path, {}))
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json"):
        read_defaults(tmp_path)
