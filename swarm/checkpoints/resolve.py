"""Finds the directory of the checkpoint that a user names.

That is an existing directory, one that a GGUF file was converted to (`gguf.py`), or a snapshot from the Hugging Face Hub. What can be told
from the disk alone is told before a command loads torch and meets peers (`check`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from protocols.errors import CheckpointError, ConfigError, ModelNotFoundError
from swarm import places
from swarm.checkpoints import gguf
from swarm.places import expanded, home
from swarm.waiting import Waits

PATTERNS = ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "special_tokens_map.json",
            "added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "sentencepiece*", "chat_template*",
            "additional_chat_templates/*.jinja"]  # fmt: skip
"""What is fetched of a repository; never pickles, never code."""

HUB_CACHES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
"""Variables that say where huggingface_hub keeps its files; without them it is the home directory."""

ETAG_TIMEOUT_S = 10.0
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")


def is_hub_name(text: str) -> bool:
    """`owner/name`, or a name alone, as the Hub allows it."""
    return _HUB_NAME.fullmatch(text) is not None


def check(model: str) -> None:
    """ModelNotFoundError or CheckpointError if `model` is meant as a place on this disk, and what is there is no model. Reads no file."""
    if not places.is_place(model):
        return
    place = places.expanded(model)
    if not place.exists():
        raise ModelNotFoundError(f"there is no directory or file {model!r}: check the path, or give a NAME that the swarm serves")
    if not place.is_dir():
        _check_file(place)
    elif gguf.find(place) is None and not (place / "config.json").exists():
        raise CheckpointError(
            f"{place} holds no config.json and no .gguf file: expected a directory with config.json and *.safetensors, or a GGUF file"
        )


def _check_file(file: Path) -> None:
    if not gguf.is_file(file):
        raise ModelNotFoundError(
            f"{str(file)!r} is a file; give the directory that holds config.json and the *.safetensors files, or a .gguf file"
        )


def resolve(
    model: str, cache_dir: Path | None = None, served: str = "", *, data_dir: Path | None = None, waits: Waits | None = None
) -> Path:
    """The directory of `model`'s checkpoint; downloads it if it is a Hub name that is not in the Hub's cache yet, and converts a GGUF file,
    or that of a directory (`gguf.checkpoint_of`: data_dir, waits, and more errors).

    cache_dir: where the Hub's snapshots are kept; None = huggingface_hub's own place. served: said at the end of an error about a name.
    ModelNotFoundError says which places were tried and what to do.
    """
    directory = expanded(model)
    if directory.is_dir():
        return gguf.checkpoint_of(directory.resolve(), data_dir, waits)
    if directory.exists():
        _check_file(directory)
        return gguf.checkpoint_of(directory.absolute(), data_dir, waits)
    if not is_hub_name(model):
        raise ModelNotFoundError(
            f"there is no directory {model!r}, and it is no Hub name either (owner/name); check the spelling{served}"
        )
    return _from_hub(model, cache_dir, served)


def _from_hub(model: str, cache_dir: Path | None, served: str) -> Path:
    from huggingface_hub import snapshot_download  # takes a quarter of a second, which a local directory need not wait for
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if cache_dir is None and home() is None and not any(os.environ.get(name) for name in HUB_CACHES):
        raise ConfigError(
            f"{model!r} is no directory, and for what the Hugging Face Hub gives there is no place: this user has no home directory; "
            "set HOME or HF_HOME, or give a directory with config.json and *.safetensors"
        )
    try:
        found = snapshot_download(model, cache_dir=cache_dir, allow_patterns=PATTERNS, etag_timeout=ETAG_TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        told = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error  # the rest is prose
        reason = " ".join(str(told).split())[:200]
        raise ModelNotFoundError(
            f"model {model!r}: no such directory, no peer that we know serves it, and the Hugging Face Hub did not give it ({reason}); "
            f"check the name and the connection, or give a directory with config.json and *.safetensors{served}"
        ) from error
    return Path(found)
