"""A checkpoint's tokenizer as transformers reads it. Importing this imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def load(folder: str | Path) -> Any:
    """The tokenizer, or None if there is none that can be read. Never the checkpoint's own code."""
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError):  # what transformers raises if there is none
        return None
