"""Opens a data set as tokens: from the cache, or by encoding.

Each source is cached alone, in a folder named by what its tokens depend on: the tokenizer's files, the version of `tokenizers`, the
source's fields, and name, size and SHA-256 of each of its files. So a changed file or tokenizer is a new folder, and a second run encodes
nothing. Files are read whole at each start, to be hashed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from node.training.data import documents, store
from node.training.data.chat import DAY
from node.training.data.encoder import Encoder
from node.training.data.faults import bad
from node.training.data.sources import DataFile, Source, files_of
from node.training.data.store import Stored, Writer
from node.training.data.token_data import FORMAT, TokenData
from protocols.errors import ConfigError

Progress = Callable[[int, int], None]
"""(bytes of text that are done, bytes in all); what it raises ends the work and leaves nothing."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "config.json",
                    "chat_template.json", "chat_template.jinja", "additional_chat_templates/*.jinja")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSettings:
    """How text becomes tokens."""

    tokenizer: Path
    """The folder of a checkpoint, or of `tokenizer.json` alone."""

    vocab_size: int
    """Ids of the model: 0 … vocab_size - 1."""

    cache: Path
    """The folder of all cached tokens, made if it is missing."""

    num_processes: int | None = None
    """Processes that encode; None = one for each core."""


def open_tokens(
    sources: Sequence[Source],
    folder: Path,
    settings: TokenSettings,
    name: str = "data.train",
    progress: Progress | None = None,
) -> TokenData:
    """The tokens of all sources, mapped into memory. Blocks: about 2 MB of text a second for each core, if they are not cached.

    folder: what patterns are relative to. name: what errors call the sources.
    Raises ConfigError (no files, ids beyond the vocabulary, no chat template, pyarrow missing), DataError (a file that is not what it
    should be), CheckpointError and ModelNotSupportedError (the tokenizer), DiskFullError, and DeadlineError if another process that encodes
    the same stops. A failure leaves nothing in the cache but what was whole before.
    """
    if not sources:
        raise ConfigError(f'{name} is empty, expected at least one source: name files, as ["text/*.txt"]')
    named = [f"{name}[{number}]" for number in range(len(sources))]
    found = [files_of(source, folder, one) for source, one in zip(sources, named, strict=True)]
    total = sum(file.size() for listed in found for file in listed)
    done, stored = 0, []
    with contextlib.ExitStack() as stack:
        reader = _Reader(settings, stack, progress or (lambda done, total: None), total)
        for source, listed, one in zip(sources, found, named, strict=True):
            stored.append(reader.open(source, listed, one, done))
            done += sum(file.size() for file in listed)
            reader.progress(done, total)
    return TokenData(
        sources=tuple(one.source(source.weight) for one, source in zip(stored, sources, strict=True)),
        pad_id=stored[0].pad_id if stored[0].pad_id < settings.vocab_size else 0,
        byte_lengths=stored[0].byte_lengths,
    )


class _Reader:
    """Opens sources one after the other; the tokenizer's processes are started for the first that is not cached."""

    def __init__(self, settings: TokenSettings, stack: contextlib.ExitStack, progress: Progress, total: int) -> None:
        self._settings, self._stack, self.progress, self._total = settings, stack, progress, total
        self._encoder: Encoder | None = None

    def open(self, source: Source, listed: Sequence[DataFile], name: str, done: int) -> Stored:
        place = self._settings.cache / key_of(source, listed, self._settings.tokenizer)
        with store.locked(place):
            found = store.load(place) or self._build(source, listed, name, done, place)
        if found.highest_id >= self._settings.vocab_size:
            raise ConfigError(
                f"{name} has the token id {found.highest_id}, but the model's vocabulary ends at {self._settings.vocab_size - 1}: take the "
                "model's own tokenizer, or raise vocab_size of its config"
            )
        return found

    def _build(self, source: Source, listed: Sequence[DataFile], name: str, done: int, place: Path) -> Stored:
        before = [_stamp(file) for file in listed]
        if self._encoder is None:
            settings = self._settings
            self._encoder = self._stack.enter_context(Encoder(settings.tokenizer, settings.vocab_size, settings.num_processes))
        with Writer(place, self._encoder.vocabulary.byte_lengths, self._encoder.pad_id) as writer:
            for items in self._encoder.encode(documents.read_all(listed, source)):
                writer.append(items)
                self.progress(min(done + items.done_bytes, self._total - 1), self._total)  # all is done once it is published
            if not writer.num_tokens:
                raise bad(name, f"has only empty documents ({len(listed)} files)", "text", "check `field`, or name other files")
            for file, stamp in zip(listed, before, strict=True):
                if _stamp(file) != stamp:
                    raise bad(file.path, "was changed while it was read", "a file at rest", "start again")
            writer.publish()
        found = store.load(place)
        assert found is not None, f"{place} was written and hashed a moment ago"
        return found


def key_of(source: Source, listed: Sequence[DataFile], tokenizer: Path) -> str:
    """32 hex letters: all that the tokens of a source depend on. Reads the files."""
    said = {
        "format": [FORMAT, DAY, documents.PART_LETTERS, importlib.metadata.version("tokenizers")],
        "tokenizer": tokenizer_digest(tokenizer),
        "source": [source.field, source.messages],
        "files": [file.identity() for file in listed],
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files that make a tokenizer, with its chat templates."""
    hashed = hashlib.sha256()
    for pattern in _TOKENIZER_FILES:
        for path in sorted(folder.glob(pattern)):
            content = path.read_bytes()
            hashed.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return hashed.hexdigest()


def _stamp(file: DataFile) -> tuple[int, int]:
    stat = file.path.stat()
    return stat.st_size, stat.st_mtime_ns
