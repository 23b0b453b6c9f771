"""Sets of small numbers as integers: bit n stands for n.

`&` and `|` of many such sets take little time. On the wire a list of masks is little-endian, each of as many bytes as the longest one
needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from protocols.errors import BadRequestError


def mask_of(numbers: Iterable[int]) -> int:
    """The mask with these bits."""
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def indices_of(mask: int) -> Iterator[int]:
    """The bits that are set, ascending."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def pack_masks(masks: Sequence[int]) -> bytes:
    """What `parse_masks` reads."""
    size = -(-max((mask.bit_length() for mask in masks), default=0) // 8)
    return b"".join(mask.to_bytes(size, "little") for mask in masks)


def parse_masks(data: memoryview, number: int, limit: int) -> tuple[int, ...]:
    """`number` masks, at least one, of bits below `limit`, a multiple of 8; BadRequestError for other bytes than `pack_masks` gives."""
    size, rest = divmod(len(data), number)
    if rest or size > limit // 8:
        raise BadRequestError(f"{len(data)} bytes are no {number} masks of at most {limit // 8} bytes each")
    masks = split_masks(data, size) if size else (0,) * number
    if size and not any(mask >> 8 * (size - 1) for mask in masks):
        raise BadRequestError("masks must be as short as they can be")
    return masks


def split_masks(data: bytes | memoryview, size: int) -> tuple[int, ...]:
    """Masks of `size` bytes each, one after the other, little-endian. size: at least 1."""
    return tuple(int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size))
