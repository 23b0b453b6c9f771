"""Text to token ids and back by `tokenizer.json` alone, and the tokens' names that chat templates use. (door: tokenizers)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from protocols.errors import CheckpointError, ModelNotSupportedError
from swarm.thin.defaults import read_json

MAX_TOKENIZER_BYTES = 64 << 20
MAX_TEMPLATE = 1 << 18
"""Letters of a chat template."""

_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
            (" 've", "'ve"), (" 're", "'re"))  # fmt: skip


class Tokenizer:
    """The face of a transformers tokenizer that streaming and chatting need."""

    def __init__(self, inner: Any, config: dict[str, Any], chat_template: str | None) -> None:
        self._inner = inner
        self.chat_template = chat_template
        self.names = {name: text for name, value in config.items() if name.endswith("_token") and (text := _content(value))}
        """`bos_token`, `eos_token`, …: what they look like in text."""
        is_bpe = type(inner.model).__name__ == "BPE"
        self._is_cleaned = bool(config.get("clean_up_tokenization_spaces")) and not is_bpe  # as transformers: it spoils BPE

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        text: str = self._inner.decode(list(ids), skip_special_tokens=skip_special_tokens)
        for before, after in _CLEANED if self._is_cleaned else ():
            text = text.replace(before, after)
        return text


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint's folder. ModelNotSupportedError where it has another form than `tokenizer.json`."""
    path, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.exists():
        raise ModelNotSupportedError(
            f"{folder.name} has no tokenizer.json, the only form that a thin client reads; ask without --thin, or pass token ids"
        )
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {MAX_TOKENIZER_BYTES} are read")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception on what it cannot read
        raise CheckpointError(f"{path} is no tokenizer: {' '.join(str(error).split())[:200]}") from None
    inner.no_truncation()
    inner.no_padding()
    config = read_json(settings) if settings.exists() else {}
    _add_special(inner, config)
    return Tokenizer(inner, config, _chat_template(folder, config))


def _add_special(inner: Any, config: dict[str, Any]) -> None:
    """Special tokens that `tokenizer.json` lacks and `tokenizer_config.json` lists. (What stands around a text, the former decides.)"""
    listed = config.get("added_tokens_decoder")
    for entry in listed.values() if isinstance(listed, dict) else ():
        text = _content(entry)
        if text and inner.token_to_id(text) is None:
            is_special = isinstance(entry, dict) and bool(entry.get("special"))
            (inner.add_special_tokens if is_special else inner.add_tokens)([text])


def _content(value: object) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        if path.stat().st_size > MAX_TEMPLATE:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; a chat template has at most {MAX_TEMPLATE}")
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several with names
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and (not isinstance(found, str) or len(found) > MAX_TEMPLATE):
        raise CheckpointError(
            f"{folder.name}: a chat template is text of at most {MAX_TEMPLATE} letters, got {type(found).__name__}"
        )
    return found
