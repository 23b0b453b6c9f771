"""Tokens and schemas, as a grammar of llguidance writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

JSON_FORM: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: else a model may go on with blanks for ever."""


def json_rule(schema: Mapping[str, Any]) -> str:
    """The schema with how values are written; what it says itself of llguidance, is kept."""
    own = schema.get("x-guidance")
    return json.dumps({**schema, "x-guidance": {**(own if isinstance(own, dict) else {}), **JSON_FORM}})


def token(*numbers: int) -> str:
    """Any one of these tokens."""
    return f"<[{','.join(map(str, numbers))}]>"
