"""Reads calls as Python writes them: `[f(a=1, b="x"), g()]`.

Only literals are read, by a parser of our own: the text is a model's, and Python's own parser may crash the process on deep nesting
(https://docs.python.org/3/library/ast.html#ast.parse). Nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from node.gateway.tools.call_layout import finite
from node.gateway.tools.depth import MAX_DEPTH

T = TypeVar("T")

BLANKS = re.compile(r"\s*+")
NAME = re.compile(r"[A-Za-z_][\w.-]*+")
TEXT = re.compile(r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+')""", re.DOTALL)
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
LETTERS = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""} | {letter: letter for letter in "\\\"'/"}
"""Behind a backslash; it stays before any other letter."""

NUMBER = re.compile(r"[+-]?(?:\d[\d_]*+(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?+(?![\w.])")
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
"""As Python and as JSON write them."""


def calls_in(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and arguments of the calls of one list, the whole text; ValueError if it is anything else."""
    reader = _Reader(text)
    reader.take("[")
    yield from reader.until("]", reader.call)
    reader.end()


class _Reader:
    """A text, and how much of it has been read. Each method reads what it is named after; ValueError if something else comes."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def call(self) -> tuple[str, dict[str, Any]]:
        name = self._match(NAME)
        self.take("(")
        found = dict[str, Any]()
        for key, value in self.until(")", self._argument):
            if key in found:
                raise ValueError(f"{key} comes twice")
            found[key] = value
        return name, found

    def _argument(self) -> tuple[str, Any]:
        key = self._match(NAME)
        self.take("=")
        return key, self._value(MAX_DEPTH)

    def _value(self, depth: int) -> Any:
        if not depth:
            raise ValueError(f"more than {MAX_DEPTH} levels")
        if self._is("["):
            return list(self.until("]", lambda: self._value(depth - 1)))
        if self._is("{"):
            return dict(self.until("}", lambda: self._item(depth - 1)))
        if (found := self._maybe(TEXT)) is not None:
            return _text(found)
        if (found := self._maybe(NUMBER)) is not None:
            return _number(found)
        word = self._match(NAME)
        if word not in WORDS:
            raise ValueError(f"{word} is no literal")
        return WORDS[word]

    def _item(self, depth: int) -> tuple[str, Any]:
        key = _text(self._match(TEXT))
        self.take(":")
        return key, self._value(depth)

    def until(self, closed: str, one: Callable[[], T]) -> Iterator[T]:
        """Several, with commas between them."""
        while not self._is(closed):
            yield one()
            if not self._is(","):
                self.take(closed)
                return

    def take(self, letter: str) -> None:
        if not self._is(letter):
            raise ValueError(f"no {letter} at {self._at}")

    def end(self) -> None:
        self._skip()
        if self._at != len(self._text):
            raise ValueError(f"more at {self._at}")

    def _is(self, letter: str) -> bool:
        self._skip()
        is_next = self._text.startswith(letter, self._at)
        self._at += is_next
        return is_next

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = self._maybe(pattern)
        if found is None:
            raise ValueError(f"no literal at {self._at}")
        return found

    def _maybe(self, pattern: re.Pattern[str]) -> str | None:
        self._skip()
        found = pattern.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found[0]

    def _skip(self) -> None:
        found = BLANKS.match(self._text, self._at)
        assert found is not None
        self._at = found.end()


def _text(literal: str) -> str:
    """ValueError if it has half a letter: `\\ud83d` and `\\ude00` belong together, as in JSON."""
    made = ESCAPE.sub(_unescaped, literal[1:-1])
    return made if made.isascii() else made.encode("utf-16", "surrogatepass").decode("utf-16")


def _unescaped(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    return chr(int(digits, 16)) if digits else LETTERS.get(found[4], found[0])


def _number(literal: str) -> int | float:
    """ValueError if it has thousands of digits."""
    return int(literal) if re.fullmatch(r"[+-]?[\d_]+", literal) else finite(literal)
