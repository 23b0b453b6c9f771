"""The one form of `--json`: an object on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping


def show(facts: Mapping[str, object]) -> None:
    """Print it, indented, in ASCII: what a peer wrote cannot speak to a terminal. A number that JSON lacks (NaN) is an error of ours."""
    print(json.dumps(facts, indent=2, allow_nan=False), flush=True)
