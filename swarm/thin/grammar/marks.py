"""Tokens and schemas, as a grammar of llguidance writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

ANY = r"(.|\n)"
"""Any letter, in a regular expression."""

JSON_FORM: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write each value: else a model may go on with blanks for ever."""


def json_rule(schema: Mapping[str, Any]) -> str:
    """The schema with how values are written; what it says itself of llguidance, is kept."""
    own = schema.get("x-guidance")
    return json.dumps({**schema, "x-guidance": {**(own if isinstance(own, dict) else {}), **JSON_FORM}})


def token(*numbers: int) -> str:
    """Any one of these tokens."""
    return f"<[{','.join(map(str, numbers))}]>"


def literal(text: str, added: Mapping[str, int], places: Mapping[str, str] | None = None) -> str:
    """A text as it is written in a rule; may be empty. added: the marks that are tokens of their own. places: letters that stand for a rule
    of their own, and that rule."""
    found = {one for one in added if one in text} | set(places or ())
    separate = "|".join(map(re.escape, sorted(found, key=lambda one: (-len(one), one))))
    parts = [part for part in re.split(f"({separate})", text) if part] if found else [text] * bool(text)
    return " ".join(token(added[part]) if part in added else (places or {}).get(part) or json.dumps(part) for part in parts)
