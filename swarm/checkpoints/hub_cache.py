"""Finds a Hub name's files among those that are on this machine.

Nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

from protocols.errors import ModelNotFoundError
from swarm.checkpoints.resolve import is_hub_name


def cached(name: str, cache_dir: Path | None = None) -> Path:
    """The snapshot of a Hub name that has a `config.json` here. cache_dir: None = huggingface_hub's own place.

    ModelNotFoundError if it is no Hub name, or there is none.
    """
    if not is_hub_name(name):
        raise ModelNotFoundError(f"{name[:200]!r} is no Hub name (owner/name); check the spelling")
    from huggingface_hub import try_to_load_from_cache  # takes a quarter of a second

    found = try_to_load_from_cache(name, "config.json", cache_dir=cache_dir)
    if not isinstance(found, str):
        raise ModelNotFoundError(
            f"{name!r} has no config.json in the Hugging Face cache of this machine, and nothing is fetched for a visitor; its owner can "
            f"fetch it: hf download {name} config.json"
        )
    return Path(found).parent
