"""What a model knows about its blocks and limits."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from swarm.client.backend import Backend


@dataclass(frozen=True, kw_only=True)
class Remote:
    """`model.remote`, set by `become_remote`."""

    backend: Backend
    num_blocks: int
    vocab_size: int
    max_positions: int | None
    cache_key: str | None
    """What this family calls its cache argument: `past_key_values`, `cache_params` for the mamba-like, or None if it has none."""
    path: Path
    """The checkpoint's directory, for its tokenizer."""
    process: int = field(default_factory=os.getpid)
    """Where the model may be used: not in a fork of it."""
