"""Reads an untrusted `config.json` with limits.

Nothing is built from absurd numbers, and no code is fetched.

Transformers believes a config: it builds lists of `num_hidden_layers` entries and tables of `max_position_embeddings`,
and some keys make it fetch kernels or import the checkpoint's own Python. All of that is refused here, on plain JSON,
before transformers sees it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from protocols.errors import CheckpointError, ModelNotSupportedError

MAX_CONFIG_BYTES = 4 << 20
MAX_JSON_BYTES = 16 << 20
"""Of the other JSON files: a tokenizer's settings may list 100,000 tokens."""

MAX_DEPTH = 16
MAX_ENTRIES = 200_000
"""Values in the whole file; per-layer lists of a 10,000-block model fit."""

MAX_NUMBER = 1 << 40
"""Any number at all (seeds and window sentinels are large, sizes are not)."""

LIMITS: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"layers?(_|$)|(^|_)depth|(num|n)_blocks?$"), 10_000),
    (re.compile(r"expert"), 1 << 13),
    (re.compile(r"heads?$"), 1 << 14),
    (re.compile(r"vocab"), 1 << 22),
    (re.compile(r"hidden|_dim$|d_model|embd|(^|_)inner|ffn|intermediate|d_ff|_rank$|d_state|d_conv|kernel|groups$"), 1 << 17),
    (re.compile(r"position|seq_len|max_len"), 1 << 28),
)
"""First pattern that matches a key's name -> largest number under it."""

_INTERMEDIATE = re.compile(r"intermediate|inner|ffn|d_ff")
_CODE_KEYS = ("auto_map", "custom_pipelines", "kernel_config", "fusion_config", "transformers_weights", "configuration_files")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", None)


def read_config(path: Path) -> dict[str, Any]:
    """The checked content of `config.json`; CheckpointError or ModelNotSupportedError says which entry is refused and why."""
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} has {size} bytes; a config has at most {MAX_CONFIG_BYTES}")
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror or error}; a checkpoint directory holds a config.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; download it again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, expected a JSON object")
    check_config(config, str(path))
    return config


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object of at most so many bytes; CheckpointError otherwise. (Empty lists take 20 times their bytes of memory.)"""
    try:
        if path.stat().st_size > max_bytes:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes; at most {max_bytes} are read")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        said = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot read {path}: {said}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def check_config(config: dict[str, Any], where: str) -> None:
    """Refuse what no honest config contains: code, foreign kernels, numbers beyond LIMITS, deep or endless nesting."""
    left = [MAX_ENTRIES]
    _check_value("", config, where, 0, left)
    if config.get("quantization_config"):
        raise ModelNotSupportedError(
            f"{where}: the weights are quantized (quantization_config); serve a checkpoint in float32, float16 or bfloat16"
        )


def _check_value(key: str, value: Any, where: str, depth: int, left: list[int]) -> None:
    left[0] -= 1
    if depth > MAX_DEPTH or left[0] < 0:
        raise CheckpointError(f"{where}: nested deeper than {MAX_DEPTH} or more than {MAX_ENTRIES} values")
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_key(name, entry, where)
            _check_value(name, entry, where, depth + 1, left)
    elif isinstance(value, list):
        for entry in value:
            _check_value(key, entry, where, depth + 1, left)
    elif isinstance(value, int | float):
        _check_number(key, value, where)


def _check_key(key: str, value: Any, where: str) -> None:
    if key in _CODE_KEYS and value:
        raise ModelNotSupportedError(
            f"{where}: {key!r} asks for the checkpoint's own code, which is never run; "
            "use an architecture that transformers knows"
        )
    if key.endswith("implementation") and value not in _ATTENTION:
        raise ModelNotSupportedError(f"{where}: {key!r} is {str(value)[:40]!r}; expected one of {_ATTENTION[:3]}")


def _check_number(key: str, value: int | float, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            raise CheckpointError(f"{where}: {key!r} is not a number")
        return  # limits such as `time_step_limit: [0.0, Infinity]` are honest
    limit = next((limit for pattern, limit in LIMITS if pattern.search(key)), MAX_NUMBER)
    limit *= 16 if _INTERMEDIATE.search(key) else 1  # a feed-forward layer may be wider than the hidden state
    if abs(value) > limit and not isinstance(value, float):
        raise CheckpointError(f"{where}: {key!r} is {str(value)[:30]}, at most {limit} is served")
