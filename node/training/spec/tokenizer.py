"""The tokenizer of a run: given, the checkpoint's, or trained.

A run file with `size` and without a tokenizer gets one that is trained on its training text, once: it is kept in a folder named by what
it depends on, i.e. vocabulary, version of `tokenizers`, and name, size and SHA-256 of each file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from node.training.data.documents import Part, read_all
from node.training.data.sources import DataFile, Source, files_of
from node.training.spec.run_file import RunFile
from node.training.spec.tokenizer_training import train_tokenizer
from protocols.errors import ConfigError, DiskFullError
from swarm import files
from swarm.places import expanded

MAX_LETTERS = 64 << 20
"""Of the training text, from its beginning: a tokenizer gains nothing from more."""

_FORMAT = 1


def tokenizer_folder(run_file: RunFile, num_ids: int, cache: Path) -> Path:
    """The folder of the tokenizer's files. Blocks: training takes about 1 s for 2 MB of text.

    num_ids: of the model (`ModelPlan.vocabulary`). cache: where trained ones are kept.
    ConfigError: neither tokenizer nor checkpoint nor training text is on this machine, or `cache` cannot be written; DataError: a file of
    the text is not what it should be; DiskFullError. A failure leaves nothing behind.
    """
    model = run_file.model
    if model.tokenizer is not None:
        return model.tokenizer if model.tokenizer.is_dir() else model.tokenizer.parent
    if model.checkpoint is not None:
        folder = expanded(model.checkpoint)
        if not (folder / "tokenizer.json").is_file():
            raise ConfigError(f"model.tokenizer is missing: {model.checkpoint} has no tokenizer.json on this machine; give one")
        return folder
    return _trained(run_file.data.train, num_ids, cache)


def _trained(sources: Sequence[Source], num_ids: int, cache: Path) -> Path:
    listed = [files_of(source, Path("/"), f"data.train[{number}]") for number, source in enumerate(sources)]
    place = cache / _key(sources, listed, num_ids)
    if place.is_dir():
        return place
    unfinished = None
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=cache))
        train_tokenizer(_texts(sources, listed), num_ids, unfinished)
        unfinished.rename(place)
    except OSError as error:
        if not place.is_dir():  # else another process was faster, and wrote the same
            raise _refusal(error, cache) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _refusal(error: OSError, cache: Path) -> ConfigError | DiskFullError:
    if files.is_full(error):
        return DiskFullError(f"a tokenizer of about 1 MB cannot be kept in {cache}: the disk is full; free some space")
    return ConfigError(f"no tokenizer can be trained and kept in {cache}: {error}; give model.tokenizer, or another folder")


def _key(sources: Sequence[Source], listed: Sequence[Sequence[DataFile]], num_ids: int) -> str:
    identities = [[file.identity() for file in found] for found in listed]
    columns = [[source.field, source.messages] for source in sources]
    said = [_FORMAT, importlib.metadata.version("tokenizers"), num_ids, MAX_LETTERS, columns, identities]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _texts(sources: Sequence[Source], listed: Sequence[Sequence[DataFile]]) -> Iterator[str]:
    left = MAX_LETTERS
    for source, found in zip(sources, listed, strict=True):
        for item in read_all(found, source):
            for text in [item.text] if isinstance(item, Part) else [message["content"] for message in item.messages]:
                yield text[:left]
                left -= len(text)
                if left <= 0:
                    return
