"""Words of messages: counted nouns, and text safe for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str, *, is_grouped: bool = False) -> str:
    """The number and the noun, in the plural (s, or es after ch) unless the number is 1. is_grouped: `13,929 tokens`."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:{',' if is_grouped else 'd'}} {noun}{'' if number == 1 else plural}"


def few(reasons: Sequence[str], most: int = 2) -> str:
    """The first reasons, and how many more there are: a message about many peers stays readable."""
    more = len(reasons) - most
    return "; ".join([*reasons[:most], *([f"and {more} more"] if more > 0 else [])])


def described(error: BaseException) -> str:
    """Class and message of an error of a library, as one line of at most 400 letters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def one_line(text: str) -> str:
    """`text` as it may be shown in one line: white space as spaces, and what is not printable as an escape (`\\x1b`).

    A peer's text may hold letters that a terminal obeys: they set its title, fill its clipboard or hide what stands before them.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else ascii(letter)[1:-1] for letter in text)
