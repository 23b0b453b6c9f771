"""A conversation in a file: `/save` writes it, `/load` reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from protocols.errors import BadRequestError, ConfigError
from swarm import files
from swarm.thin.tokenizing.templates import Message

FORMAT = "murmuration chat 1"
MAX_FILE_BYTES = 64 << 20
MAX_MESSAGES = 10_000


def save(file: Path, model: str, messages: Sequence[Message]) -> None:
    """Write the conversation (mode 0600). An older one of ours is replaced; BadRequestError if the file is anything else."""
    if file.exists():
        try:
            load(file)
        except (BadRequestError, ConfigError) as error:
            raise BadRequestError(f"{file} is there, and is no saved chat ({error}); choose another name") from None
    document = {"format": FORMAT, "model": model, "messages": [dict(one) for one in messages]}
    try:
        files.replace(file, json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}; choose another place") from None


def load(file: Path) -> tuple[str, list[Message]]:
    """(the model that was asked, the conversation). ConfigError or BadRequestError says what is wrong with the file."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}; /save FILE writes one") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadRequestError(f"{file} has more than {MAX_FILE_BYTES >> 20} MiB, which is no saved chat")
    try:
        return _parsed(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadRequestError(f"{file} is no saved chat: expected what /save FILE writes") from None


def _parsed(document: object) -> tuple[str, list[Message]]:
    """ValueError, KeyError or TypeError for anything but our form: an optional system message, then questions with their answers."""
    match document:
        case {"format": str(form), "model": str(model), "messages": list(rows)} if form == FORMAT and len(rows) <= MAX_MESSAGES:
            messages = list(map(_message, rows))
        case _:
            raise ValueError("another form")
    roles = [one["role"] for one in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("roles in another order")
    return model, messages


def _message(row: object) -> Message:
    match row:
        case {"role": "system" | "user" | "assistant" as role, "content": str(content)}:
            return {"role": role, "content": content}
        case _:
            raise ValueError("no message")
