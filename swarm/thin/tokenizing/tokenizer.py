"""Text to token ids and back, as transformers does.

By tokenizers alone; runs in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.checkpoints import chat_template
from swarm.checkpoints.bounds import read_json
from swarm.thin.tokenizing import special_tokens, vocabulary
from swarm.thin.tokenizing.classes import TokenizerClass, class_of
from swarm.thin.tokenizing.encoded import Encoded
from swarm.thin.tokenizing.vocabulary import Vocabulary

MAX_TOKENIZER_BYTES = 64 << 20

_CLEANED_ALL_THE_SAME = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
            (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class Tokenizer:
    """What streaming and chatting need of a transformers tokenizer."""

    def __init__(self, inner: Any, config: Mapping[str, Any], names: Mapping[str, str], templates: Mapping[str, str]) -> None:
        self._inner = inner
        self.templates = templates
        """Chat templates by name."""
        self.names = dict(names)
        """`bos_token`, `eos_token`, …: what they look like in text."""
        is_spoilt = type(inner.model).__name__ == "BPE" and not config.get(
            _CLEANED_ALL_THE_SAME
        )  # as transformers: it spoils BPE
        self._is_cleaned = bool(config.get("clean_up_tokenization_spaces")) and not is_spoilt

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_all(self, texts: Sequence[str], with_spans: bool = False) -> list[Encoded]:
        """Each text alone, without special tokens around it."""
        if not with_spans:
            found = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
            return [Encoded(ids=one.ids, spans=()) for one in found]
        last, self._inner.post_processor = self._inner.post_processor, None  # a byte-level one takes spaces off the spans
        try:
            return [
                Encoded(ids=one.ids, spans=one.offsets) for one in self._inner.encode_batch(list(texts), add_special_tokens=False)
            ]
        finally:
            self._inner.post_processor = last

    def vocabulary(self) -> Vocabulary:
        """What each token stands for."""
        return vocabulary.of(self._inner)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
        for before, after in _CLEANED if self._is_cleaned else ():
            text = text.replace(before, after)
        return text


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, as `AutoTokenizer` of transformers would read it.

    ModelNotSupportedError if it has another form than `tokenizer.json`, CheckpointError if a file is damaged.
    """
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    config = read_json(settings) if settings.exists() else {}
    _refuse_unknown(path, config)
    data = _read(path)
    inner, kind = _parsed(path, data), _class_of(folder, config, data)
    padding = inner.padding["pad_token"] if inner.padding and kind.model is None else None
    special = special_tokens.read(folder, {**kind.defaults, **config}, inner.get_added_tokens_decoder(), padding)
    if kind.model is not None:
        inner = _built(path, data, kind.model, special.names())
        kind.build(inner, config)
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = bool(config.get("split_special_tokens"))
    inner.add_tokens(special.missing_from(list(inner.get_added_tokens_decoder().values())))
    return Tokenizer(inner, config, special.names(), chat_template.of(folder, config))


def _refuse_unknown(path: Path, config: Mapping[str, Any]) -> None:
    if not path.exists():
        raise ModelNotSupportedError(
            f"{path.parent.name} has no tokenizer.json, the only form that a thin client reads; ask without --thin, or pass token ids"
        )
    for name in ("fast_tokenizer_files", "fix_mistral_regex"):
        if config.get(name):
            raise ModelNotSupportedError(
                f"tokenizer_config.json sets {name} to {str(config[name])[:60]}, which a thin client does not know; ask without --thin"
            )


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {MAX_TOKENIZER_BYTES} are read")
    return path.read_bytes()


def _class_of(folder: Path, config: Mapping[str, Any], data: bytes) -> TokenizerClass:
    model = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    return class_of(model.get("model_type"), declared, b'"ByteLevel"' in data)


def _built(path: Path, data: bytes, settings: Mapping[str, Any], names: Mapping[str, str]) -> Any:
    """A tokenizer with vocabulary, merges and post-processor of the file, and nothing else of it."""
    document = json.loads(data)
    if document["model"].get("type", "BPE") != "BPE":
        raise ModelNotSupportedError(
            f"{path} holds a {document['model']['type']} model, but its tokenizer class builds a BPE one; ask without --thin"
        )
    own = {"dropout": None, "unk_token": None, "ignore_merges": False, **settings}
    if "unk_token" in settings:
        own["unk_token"] = names.get("unk_token")
    bare = {"added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None, "model": document["model"] | own}
    return _parsed(path, json.dumps(document | bare).encode())


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises plain Exception on what it cannot read
        raise CheckpointError(f"{path} is no tokenizer: {' '.join(str(error).split())[:200]}") from None
