"""Text from outside: UTF-8 of a bounded size, or an error.

Arguments, stdin, lines of a chat. The error is one line that names the place of the wrong byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from protocols.errors import BadRequestError, ConfigError

MAX_PROMPT = 16 << 20
"""Most letters of one prompt: more than any context holds, and tokenizing them takes seconds."""

NEAR = 20
"""Letters before a bad byte that are shown."""


def read_stdin(what: str) -> str:
    """All of stdin, without its last line end."""
    as_bytes_with_escapes()
    text = sys.stdin.read(MAX_PROMPT + 2)
    return checked(what, text).removesuffix("\n")


def read_file(file: Path, what: str) -> str:
    """All of a file, without its last line end; ConfigError if it cannot be read."""
    try:
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
            text = opened.read(MAX_PROMPT + 2)
    except OSError as error:
        hint = "; @@… says a text that begins with @" if what != "--prompt-file" else ""
        raise ConfigError(f"{what}: {file} cannot be read: {error.strerror or error}{hint}") from None
    return checked(f"{what} ({file})", text).removesuffix("\n")


def as_bytes_with_escapes() -> None:
    """Let stdin be UTF-8 whatever the locale, with what is not as surrogates, so that `checked` can say where."""
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")


def check_arguments(arguments: Sequence[str]) -> None:
    """BadRequestError for the first argument that is not UTF-8, by its flag or its number."""
    before = ""
    for number, argument in enumerate(arguments, 1):
        flag, _, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        checked(flag if flag.startswith("--") and flag != "--" else f"argument {number}", value or argument)
        before = argument


def checked(what: str, text: str) -> str:
    """`text`; BadRequestError if it holds bytes that are not UTF-8 (Python keeps them as surrogates), or is too long."""
    if len(text) > MAX_PROMPT:
        raise BadRequestError(f"{what} has more than {MAX_PROMPT} letters, which is longer than any model takes; shorten it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at, letter = error.start, ord(text[error.start])
        got = f"byte 0x{letter - 0xDC00:02x}" if 0xDC80 <= letter <= 0xDCFF else f"the half letter U+{letter:04X}"
        offset, near = len(text[:at].encode()), text[max(0, at - NEAR) : at]
        after = f" after {near!r}" if near else ""
        raise BadRequestError(
            f"{what} is not UTF-8: {got} at offset {offset}{after}; convert it, with iconv -t UTF-8 say"
        ) from None
    return text
