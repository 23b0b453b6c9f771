"""Counts with their nouns, for messages: `1 hop`, `2 hops`."""

from __future__ import annotations


def counted(number: int, noun: str, *, is_grouped: bool = False) -> str:
    """The number and the noun, in the plural unless the number is 1. The plural is made with an s. is_grouped: `13,929 tokens`."""
    return f"{number:{',' if is_grouped else 'd'}} {noun}{'' if number == 1 else 's'}"
