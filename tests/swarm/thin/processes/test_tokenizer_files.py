"""A thin client reads the tokenizer files that transformers reads.

Wherever a checkpoint puts them: the same ids, the same rendered chat, the same text back.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints.digest import build_manifest, is_small_file
from swarm.client.contract import read_settings
from swarm.models.checkpoint import open_checkpoint
from swarm.thin.defaults import read_defaults
from swarm.thin.settings import Wanted
from swarm.thin.tokenizing.classes import CLASSES, GENERIC, REGISTERED
from swarm.thin.tokenizing.sandbox import Sandbox
from swarm.thin.tokenizing.sandboxed_tokenizer import SandboxedTokenizer as Thin
from swarm.thin.tokenizing.templates import conversation_ids
from tests.families import make_checkpoint

TEXTS = [
    "Grüße, 世界 🙂",
    "<s>one</s> two<|im_end|>\n three <new> four<extra>",
    " ! spaces  and\nlines 123 .",
    "a<pad>b<|im_start|>user\nHi</s>\n<s> x",
    "",
]
MESSAGES = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "And?"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
    "[{{ unk_token }}|{{ pad_token }}|{{ image_token }}]assistant:"
)
TOKEN = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
IM_END, NEW = {**TOKEN, "content": "<|im_end|>"}, {**TOKEN, "content": "<new>"}


def bytes_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "w"), ("i", "n"), ("n", "e")]
    vocab = {word: number for number, word in enumerate([*alphabet, *("".join(pair) for pair in merges), "<s>", "</s>", "<unk>"])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>"])
    return inner


def pieces_tokenizer() -> Tokenizer:
    """As the files of llama-2 checkpoints: a normalizer that puts a space before every part of a text."""
    letters = ["▁", *map(chr, range(33, 127)), "\n", "ü", "ß"]
    vocab = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    vocab |= {word: len(vocab) + number for number, word in enumerate([*letters, "▁t", "in"])}
    inner = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "t"), ("i", "n")], fuse_unk=True, byte_fallback=True, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def write(folder: Path, inner: Tokenizer, files: dict[str, Any], model_type: str = "llama") -> None:
    inner.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 300}))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


SANDBOX = Sandbox("tiny")


def opened(folder: Path) -> Thin:
    return Thin(SANDBOX, folder)


async def assert_as_transformers(folder: Path) -> Thin:
    theirs, ours = AutoTokenizer.from_pretrained(folder), opened(folder)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special).input_ids
            assert ours.encode(text, add_special_tokens=special) == ids, (text, special)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert ours.names == theirs.special_tokens_map
    if theirs.chat_template is not None:
        said = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
        assert await conversation_ids(ours, MESSAGES) == theirs(said, add_special_tokens=False).input_ids
    return ours


SETTINGS = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
MAP = {"bos_token": "<s>", "eos_token": {**TOKEN, "content": "</s>"}, "unk_token": "<unk>"}
FILES: dict[str, dict[str, Any]] = {
    "special_tokens_map": {"tokenizer_config.json": SETTINGS, "special_tokens_map.json": MAP},
    "map that wins": {"tokenizer_config.json": {**SETTINGS, "bos_token": "<|im_start|>"}, "special_tokens_map.json": MAP},
    "map beside a decoder": {
        "tokenizer_config.json": {**SETTINGS, "added_tokens_decoder": {"300": {**IM_END, "special": True}}},
        "special_tokens_map.json": MAP,
    },
    "additional tokens in the map": {
        "tokenizer_config.json": SETTINGS,
        "special_tokens_map.json": {**MAP, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
    },
    "extra tokens in both": {
        "tokenizer_config.json": {**SETTINGS, "extra_special_tokens": ["<|im_start|>"]},
        "special_tokens_map.json": {**MAP, "extra_special_tokens": ["<|im_start|>", {**IM_END}]},
    },
    "added_tokens": {
        "tokenizer_config.json": {**SETTINGS, "eos_token": "<|im_end|>"},
        "added_tokens.json": {"<|im_end|>": 264, "<new>": 263},
    },
    "added_tokens and a map": {
        "tokenizer_config.json": SETTINGS,
        "special_tokens_map.json": {**MAP, "pad_token": "<pad>"},
        "added_tokens.json": {"<pad>": 263, "<new>": 264},
    },
    "tokens as objects": {
        "tokenizer_config.json": {
            **SETTINGS,
            "bos_token": {"__type": "AddedToken", **TOKEN, "content": "<s>"},
            "pad_token": {"__type": "AddedToken", **TOKEN, "lstrip": True, "content": "<pad>"},
        }
    },
    "a decoder": {
        "tokenizer_config.json": {
            **SETTINGS,
            "bos_token": "<|im_end|>",
            "added_tokens_decoder": {"270": {**NEW, "special": False, "normalized": True}, "263": {**IM_END, "special": True}},
        }
    },
    "a letter as a token": {"tokenizer_config.json": {**SETTINGS, "pad_token": "!", "bos_token": "<s>"}},
    "named extra tokens": {
        "tokenizer_config.json": {**SETTINGS, "bos_token": "<s>", "extra_special_tokens": {"image_token": "<new>"}}
    },
    "a name of its own": {"tokenizer_config.json": {**SETTINGS, "image_token": "<new>", "eos_token": "</s>"}},
    "listed extra tokens": {"tokenizer_config.json": {**SETTINGS, "additional_special_tokens": ["<extra>", "<|im_end|>"]}},
    "special tokens are text": {"tokenizer_config.json": {**SETTINGS, "split_special_tokens": True, "bos_token": "<s>"}},
    "clean up": {"tokenizer_config.json": {**SETTINGS, "clean_up_tokenization_spaces": True}},
    "clean up all the same": {
        "tokenizer_config.json": {
            **SETTINGS,
            "clean_up_tokenization_spaces": True,
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True,
        }
    },
    "add bos": {"tokenizer_config.json": {**SETTINGS, "bos_token": "<s>", "add_bos_token": True, "add_eos_token": True}},
    "no settings": {"special_tokens_map.json": MAP, "chat_template.jinja": TEMPLATE},
    "a template of its own file": {"tokenizer_config.json": SETTINGS, "chat_template.jinja": "{{ messages[0].content }}!"},
    "named templates": {
        "tokenizer_config.json": {
            **SETTINGS,
            "chat_template": [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools"}],
        }
    },
    "additional templates": {
        "tokenizer_config.json": SETTINGS,
        "chat_template.jinja": "{{ messages[-1].content }}?",
        "additional_chat_templates/tool_use.jinja": "tools",
    },
    "an additional default": {
        "tokenizer_config.json": SETTINGS,
        "additional_chat_templates/default.jinja": "{{ messages | length }}",
    },
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
async def test_every_file_that_names_a_token_or_a_template_counts(name: str, kind: str, tmp_path: Path) -> None:
    files = dict(FILES[name])
    files.setdefault("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    write(tmp_path, bytes_tokenizer() if kind == "bytes" else pieces_tokenizer(), files)
    await assert_as_transformers(tmp_path)


@pytest.mark.parametrize(
    "settings", [{}, {"legacy": True}, {"add_prefix_space": False}, {"bos_token": "<s>", "pad_token": "<pad>"}]
)
@pytest.mark.parametrize("name", sorted(name for name, kind in CLASSES.items() if kind.model is not None))
async def test_a_class_that_builds_its_own_tokenizer_builds_it_here_too(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    inner = pieces_tokenizer() if name in ("LlamaTokenizer", "GemmaTokenizer") else bytes_tokenizer()
    model_type = next((kind for kind, one in REGISTERED.items() if one == name), "llama")
    write(tmp_path, inner, {"tokenizer_config.json": {**SETTINGS, **settings, "tokenizer_class": name}}, model_type)
    ours = await assert_as_transformers(tmp_path)
    assert set(CLASSES[name].defaults) <= set(ours.names)


async def test_a_llama_class_over_a_byte_level_file_takes_the_file(tmp_path: Path) -> None:
    write(tmp_path, bytes_tokenizer(), {"tokenizer_config.json": {**SETTINGS, "tokenizer_class": "LlamaTokenizerFast"}})
    await assert_as_transformers(tmp_path)


async def test_a_model_without_settings_has_the_tokens_of_its_types_class(tmp_path: Path) -> None:
    """gpt2's checkpoints say nothing: bos, eos and unk are the class's."""
    write(tmp_path, bytes_tokenizer(), {"chat_template.jinja": TEMPLATE}, "gpt2")
    assert (await assert_as_transformers(tmp_path)).names["bos_token"] == "<|endoftext|>"


def test_the_table_of_classes_is_transformers() -> None:
    decoders_of = {kind: TOKENIZER_MAPPING_NAMES.get(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert {kind: decoders_of[kind] for kind in REGISTERED} == dict(REGISTERED)
    left_out = {kind: name for kind, name in decoders_of.items() if name and kind not in REGISTERED}
    assert not {name for name in left_out.values()} & set(CLASSES) - {GENERIC, "RobertaTokenizer", "XLMRobertaTokenizer"}
    for name, kind in CLASSES.items():
        parameters = inspect.signature(tokenizer_class_from_name(name).__init__).parameters
        own = {one.name: str(one.default) for one in parameters.values() if one.name.endswith("_token") and one.default}
        assert kind.defaults == {
            word: text for word, text in own.items() if parameters[word].default is not inspect.Parameter.empty
        }


async def test_templates_without_a_default_refuse_a_chat_only(tmp_path: Path) -> None:
    write(tmp_path, bytes_tokenizer(), {"additional_chat_templates/rag.jinja": "x", "tokenizer_config.json": SETTINGS})
    ours = opened(tmp_path)
    assert ours.encode("a")
    with pytest.raises(ModelNotSupportedError, match=r"templates for rag, and none called default"):
        await conversation_ids(ours, MESSAGES)


async def test_a_processors_template_is_found(tmp_path: Path) -> None:
    write(tmp_path, bytes_tokenizer(), {"chat_template.json": {"chat_template": "{{ messages[0].content }}<s>"}})
    ours = opened(tmp_path)
    assert await conversation_ids(ours, MESSAGES) == ours.encode("Hi there<s>", add_special_tokens=False)


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"special_tokens_map.json": "["}, CheckpointError, "cannot read"),
        ({"added_tokens.json": {"<a>": "x"}}, CheckpointError, "expected a whole number"),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"x": "y"}}}, CheckpointError, "expected an id and a token"),
        ({"tokenizer_config.json": {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}}, ModelNotSupportedError, "without --thin"),
    ],
)
def test_what_cannot_be_read_says_which_file(files: dict[str, Any], error: type[Exception], words: str, tmp_path: Path) -> None:
    write(tmp_path, bytes_tokenizer(), files)
    with pytest.raises(error, match=words):
        opened(tmp_path)


def test_the_manifest_lists_every_file_that_decides_ids(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "tiny")
    before = build_manifest(open_checkpoint(checkpoint), tmp_path / "digests")
    named = ["additional_chat_templates/tool_use.jinja", "chat_template.json", "special_tokens_map.json", "tokenizer.4.0.0.json"]
    for name in named:
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("{}")
        assert is_small_file(name)
    manifest = build_manifest(open_checkpoint(checkpoint), tmp_path / "digests")  # not the remembered one
    assert [entry.name for entry in manifest.files if entry not in before.files] == named
    for name in ("additional_chat_templates/../x.jinja", "additional_chat_templates/a/b.jinja", "x.jinja", "tokenizer.exe.json"):
        assert not is_small_file(name)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "vocab_size": 9},
        {"model_type": "llama", "vocab_size": 9, "eos_token_id": 7, "repetition_penalty": 1.5},
        {"model_type": "gemma3", "vocab_size": 9, "text_config": {"vocab_size": 9, "eos_token_id": [3, 4]}},
        {"model_type": "gemma3", "vocab_size": 9, "eos_token_id": None, "text_config": {"vocab_size": 9, "eos_token_id": 3}},
    ],
)
@pytest.mark.parametrize("own", [None, {}, {"eos_token_id": [5, 6]}])
def test_where_an_answer_ends_is_said_by_the_file_that_transformers_reads(
    config: dict[str, Any], own: dict[str, Any] | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if own is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(own))
        theirs = GenerationConfig.from_pretrained(tmp_path)
    else:  # as transformers' `adjust_generation_fn` does where there is no file
        theirs = GenerationConfig.from_pretrained(tmp_path, config_file_name="config.json", _from_model_config=True)
    eos = theirs.eos_token_id
    ours, full = read_defaults(tmp_path), read_settings(tmp_path)
    assert ours.ends == frozenset([] if eos is None else eos if isinstance(eos, list) else [eos])
    assert full.eos_token_id == eos and full.repetition_penalty == theirs.repetition_penalty
    assert ours.sampling(Wanted(), None).repetition_penalty == (theirs.repetition_penalty or 1.0)
