"""What came last: bounded, and only a part of one network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_PER_PREFIX = 4
"""Entries of one /24 or /48, a private one too, and of all names; more only while there are free places."""


def note(book: dict[K, V], key: K, value: V, most: int, network: Callable[[K], str] | None = None) -> None:
    """Put it last. Beyond `most`, forget the first entry of a network that has more than its part; if none has, the first of all.

    network: of a key, by `swarm.prefixes.prefix`; None = networks do not count.
    """
    book.pop(key, None)
    book[key] = value
    while len(book) > most:
        del book[_surplus(book, network)]


def _surplus(book: dict[K, V], network: Callable[[K], str] | None) -> K:
    if network is not None:
        networks = {key: network(key) for key in book}
        sizes = Counter(networks.values())
        for key in book:
            if sizes[networks[key]] > MAX_PER_PREFIX:
                return key
    return next(iter(book))
