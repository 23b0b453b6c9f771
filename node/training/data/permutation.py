"""A seeded permutation that is computed place by place.

An order of N things needs no memory, and any place of it costs the same: a few hashes.

It is a Feistel network over a rectangle of about the square root of N in each direction, in whole numbers: each round adds a hash of one
coordinate to the other, so every round can be undone. A result beyond N goes through again until it is below ("cycle walking"); at most
about 1 in sqrt(N) does. Source: Black & Rogaway 2002, "Ciphers with arbitrary finite domains", methods 2 and 3.
"""

from __future__ import annotations

import hashlib
import math

ROUNDS = 8
"""Black & Rogaway need 3 for their proof; with 8, small domains are shuffled well, too (tests/node/training/data/test_permutation.py)."""


def order_key(*names: int) -> bytes:
    """32 bytes: the key of the order that these numbers (seed, source, pass) name."""
    return hashlib.sha256("/".join(map(str, names)).encode()).digest()


def permuted(key: bytes, size: int, place: int) -> int:
    """What stands at `place` of the order `key` of range(size); for each key, a bijection of range(size). 0 <= place < size."""
    assert 0 <= place < size, f"place {place} of {size}"
    height = math.isqrt(size - 1) + 1
    width = -(-size // height)
    while True:
        place = _mixed(key, height, width, place)
        if place < size:
            return place


def _mixed(key: bytes, height: int, width: int, value: int) -> int:
    """A bijection of range(height * width)."""
    left, right = divmod(value, width)
    for number in range(0, ROUNDS, 2):
        left = (left + _hash(key, number, right)) % height
        right = (right + _hash(key, number + 1, left)) % width
    return left * width + right


def _hash(key: bytes, number: int, value: int) -> int:
    data = number.to_bytes(1, "little") + value.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, key=key, digest_size=8).digest(), "little")
