"""Finds a model's blocks by the numbers in tensor names. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from swarm.checkpoints.quirks import TOWER

_FIRST = re.compile(r"(.*?(?:^|\.))([0-9]{1,5})\.")
_NUMBER = re.compile(r"[0-9]{1,5}")


def first_number(name: str) -> tuple[str, str] | None:
    """(`model.layers.`, `3`) of `model.layers.3.mlp.weight`; None if no whole part of the name but the last is a number."""
    match = _FIRST.match(name)
    return (match[1], match[2]) if match else None


def block_of(name: str, prefix: str) -> int | None:
    """The number right behind `prefix` in a tensor's name; None for a tensor of no block."""
    number = name[len(prefix) :].partition(".")[0] if name.startswith(prefix) else ""
    return int(number) if _NUMBER.fullmatch(number) else None


def block_prefix(sizes: Iterable[tuple[str, int]], num_blocks: int = 100_000) -> str | None:
    """What stands before the blocks' numbers: of all prefixes with numbers below `num_blocks` behind, the heaviest one that is no image
    or sound tower's; None if no name has a number.

    sizes: (name, size) of each tensor; the size in any unit.
    """
    weights: dict[str, int] = {}
    for name, size in sizes:
        found = first_number(name)
        if found and int(found[1]) < num_blocks:
            weights[found[0]] = weights.get(found[0], 0) + size
    return max(weights, key=lambda prefix: (not TOWER.search(prefix), weights[prefix]), default=None)


def expert_counts(config: Mapping[str, object]) -> frozenset[int]:
    """Every number that a `config.json` gives, at any depth, under a key that speaks of experts; one of them is how many there are."""
    found: set[int] = set()
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= expert_counts(value)
        elif type(value) is int and "expert" in key:
            found.add(value)
    return frozenset(found)
