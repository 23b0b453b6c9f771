"""How many ids a tokenizer has, and which ends a document.

Read from its files alone: `tokenizer.json`, and `tokenizer_config.json` beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ConfigError
from swarm.checkpoints.bounds import read_json

MAX_TOKENIZER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ids of a tokenizer are below `num_ids`."""

    num_ids: int
    end_id: int | None
    """Of its `eos_token`; None if it names none."""


def read_vocabulary(tokenizer: Path) -> Vocabulary:
    """tokenizer: a tokenizer.json, or a directory with one. ConfigError if it is none, with what to do."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        content = read_json(file, MAX_TOKENIZER_BYTES)
        settings_file = file.with_name("tokenizer_config.json")
        settings = read_json(settings_file) if settings_file.is_file() else {}
    except CheckpointError as error:
        raise ConfigError(f"model.tokenizer: {error}; give a tokenizer.json, or a directory with one") from None
    ids = dict(_ids(content))
    if not ids:
        raise ConfigError(f"model.tokenizer: {file} lists no tokens; expected the `tokenizer.json` of a fast tokenizer")
    end = settings.get("eos_token")
    return Vocabulary(1 + max(ids.values()), ids.get(str(end.get("content") if isinstance(end, dict) else end)))


def _ids(content: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(token, id) of the model's vocabulary (a map, or a list of [token, score]) and of what was added."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from ((token, number) for token, number in vocabulary.items() if type(number) is int and number >= 0)
    elif isinstance(vocabulary, list):
        yield from ((str(entry[0]), number) for number, entry in enumerate(vocabulary) if isinstance(entry, list) and entry)
    added = content.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and type(entry.get("id")) is int and entry["id"] >= 0:
            yield str(entry.get("content")), entry["id"]
