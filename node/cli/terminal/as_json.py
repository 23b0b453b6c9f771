"""The one form of `--json`: an object on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping


def show(facts: Mapping[str, object]) -> None:
    """Print it, indented, in ASCII: what a peer wrote cannot speak to a terminal."""
    print(json.dumps(plain(facts), indent=2, allow_nan=False), flush=True)


def plain(value: object) -> object:
    """The same as JSON has it: a number that is not finite is null, and what is none of its types is text."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
