"""Reads the fields of a header that a peer wrote.

Every reader checks type and range, and says what it expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocols.errors import MAX_MESSAGE, BadRequestError, shown
from protocols.ids import MAX_MODEL_TEXT, ModelId, parse_address
from protocols.words import counted

Header = Mapping[str, Any]

TEXT = frozenset({str})
"""The types that a map's keys may have."""


def _refuse(key: str, expected: str, got: object) -> BadRequestError:
    return BadRequestError(f"field {key!r} must be {expected}, got {shown(got)}")


def integer(header: Header, key: str, low: int, high: int) -> int:
    """An integer in [low, high]."""
    value = header.get(key)
    if type(value) is not int or not low <= value <= high:
        raise _refuse(key, f"an integer from {low} to {high}", value)
    return value


def number(header: Header, key: str, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    value = header.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _refuse(key, f"a number from {low} to {high}", value)
    return float(value)


def text(header: Header, key: str, longest: int) -> str:
    """Printable text of at most `longest` letters."""
    value = header.get(key)
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise _refuse(key, f"printable text of at most {counted(longest, 'letter')}", value)
    return value


def message(header: Header, key: str) -> str:
    """The text of an error, which may have several lines."""
    value = header.get(key)
    if not isinstance(value, str) or len(value) > MAX_MESSAGE:
        raise _refuse(key, f"text of at most {MAX_MESSAGE} letters", value)
    return value


def one_of(header: Header, key: str, words: Sequence[str]) -> str:
    """One of a few words."""
    value = header.get(key)
    if not isinstance(value, str) or value not in words:
        raise _refuse(key, f"one of {', '.join(words)}", value)
    return value


def raw(header: Header, key: str, longest: int) -> bytes:
    """At most `longest` bytes."""
    value = header.get(key)
    if not isinstance(value, bytes) or len(value) > longest:
        raise _refuse(key, f"at most {longest} bytes", value)
    return value


def exactly(header: Header, key: str, *lengths: int) -> bytes:
    """Bytes of one of these lengths."""
    value = header.get(key)
    if not isinstance(value, bytes) or len(value) not in lengths:
        raise _refuse(key, f"{' or '.join(map(str, lengths))} bytes", value)
    return value


def flag(header: Header, key: str) -> bool:
    """True or False."""
    value = header.get(key)
    if type(value) is not bool:
        raise _refuse(key, "true or false", value)
    return value


def array(header: Header, key: str, longest: int) -> list[Any]:
    """A list of at most `longest` things, each still unchecked."""
    value = header.get(key)
    if not isinstance(value, list) or len(value) > longest:
        raise _refuse(key, f"a list of at most {longest}", value)
    return value


def integers(header: Header, key: str, longest: int, low: int, high: int) -> tuple[int, ...]:
    """A list of at most `longest` integers, each in [low, high]."""
    values = array(header, key, longest)
    for value in values:
        if type(value) is not int or not low <= value <= high:
            raise _refuse(key, f"integers from {low} to {high}", value)
    return tuple(values)


def texts(header: Header, key: str, longest: int, letters: int) -> tuple[str, ...]:
    """A list of at most `longest` printable texts of at most `letters` letters each."""
    return tuple(text({key: value}, key, letters) for value in array(header, key, longest))


def model(header: Header, key: str) -> ModelId:
    """A model, or a run: `name@digest`."""
    return ModelId.parse(text(header, key, MAX_MODEL_TEXT))


def addresses(header: Header, key: str, longest: int) -> tuple[str, ...]:
    """A list of at most `longest` gRPC addresses, `host:port`."""
    return tuple(parse_address(value) for value in array(header, key, longest))


def table(value: object, what: str) -> dict[str, Any]:
    """A map with text keys, inside a list or another map."""
    if not isinstance(value, dict) or not TEXT.issuperset(map(type, value)):
        raise _refuse(what, "a map with text keys", value)
    return value
