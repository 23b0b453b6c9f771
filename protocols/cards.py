"""A card: what a replica's gradient sums hold, signed for one group.

Units are in the group's order, and of each unit its parts. Size of a card: a mask of at most 512 bytes per part, and 4 bytes of target
tokens for each index that it holds.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final

import msgpack

from protocols import fields, frame
from protocols.defaults import MAX_GROUP_UNITS, MAX_MEMBERS, MAX_PART_BYTES
from protocols.errors import BadRequestError
from protocols.groups import (
    DIGEST_BYTES,
    GroupId,
    parse_group_id,
)
from protocols.ids import PeerId, parse_peer_id
from protocols.masks import indices_of, pack_masks, parse_masks
from protocols.runs import MAX_MICRO_BATCHES
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION

MAX_VALUES: Final = 1 << 40
"""Float32 values of one unit."""
MAX_CARDS_BYTES: Final = MAX_PART_BYTES - (64 << 10)
"""Of all cards of a group together: a request of one message carries them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSum:
    """What one replica has of one unit: the sum's size, the chain of its version, and which indices are in the sum."""

    num_values: int
    """Float32 values: of all its trainable parameters together."""
    chain: bytes
    """32 bytes; nothing at version 0."""
    held: tuple[int, ...]
    """A mask for each of `parts_of(unit)`, in that order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A group that has agreed: its id, and the digest that all members voted for."""

    group_id: GroupId
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """What one replica brings to a group; what its card says, unsigned."""

    version: int
    """Of all the group's units here. A replica whose units differ says the lowest."""
    units: tuple[UnitSum, ...]
    """In the group's order."""
    num_targets: Mapping[int, int] = field(default_factory=dict)
    """Target tokens of each index that is in any of the sums."""

    @property
    def held(self) -> tuple[int, ...]:
        """A mask for each of the group's parts."""
        return tuple(mask for unit in self.units for mask in unit.held)

    @property
    def size(self) -> int:
        """How many (part, index) pairs it holds."""
        return sum(mask.bit_count() for mask in self.held)

    @property
    def any_held(self) -> int:
        """The mask of indices in any of its sums."""
        union = 0
        for mask in self.held:
            union |= mask
        return union


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A member's signed word on its ledger, for one group only."""

    group: bytes
    """`Group.digest()`."""
    peer: PeerId
    ledger: Ledger
    agreed: Agreement | None = None
    """This peer has agreed in another group of the same version already; its ledger is of no use then."""
    signature: bytes = b""

    KIND: ClassVar[str] = "card"
    CONTEXT: ClassVar[bytes] = b"murmuration-card/1\0"

    def signed_bytes(self) -> bytes:
        """What the member signs."""
        header, buffers = self._packed()
        return self.CONTEXT + hashlib.sha256(msgpack.packb([list(header.items()), buffers])).digest()

    def signed(self, sign: Callable[[bytes], bytes]) -> Card:
        return replace(self, signature=sign(self.signed_bytes()))

    def _packed(self) -> tuple[dict[str, object], list[bytes]]:
        ledger, union = self.ledger, self.ledger.any_held
        header = {"group": self.group, "peer": self.peer, "version": ledger.version,
                  "values": [unit.num_values for unit in ledger.units], "parts": [len(unit.held) for unit in ledger.units],
                  "chains": b"".join(unit.chain for unit in ledger.units),
                  "agreed": [self.agreed.group_id, self.agreed.digest] if self.agreed else []}  # fmt: skip
        targets = [ledger.num_targets[index] for index in indices_of(union)]
        return header, [pack_masks(ledger.held), struct.pack(f"<{len(targets)}I", *targets)]

    def encode(self) -> bytes:
        header, buffers = self._packed()
        return frame.encode({"t": self.KIND, **header, "signature": self.signature}, buffers)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Card:
        """Checked for form only: `swarm/averaging/plan.py` compares it with its group, and checks the signature."""
        received = frame.decode_kind(bytes(data), cls.KIND)
        header, (masks, targets) = received.header, frame.buffers_of(received, 2)
        agreed = fields.array(header, "agreed", 2)
        return cls(
            group=fields.exactly(header, "group", DIGEST_BYTES),
            peer=parse_peer_id(header.get("peer")),
            ledger=_parse_ledger(header, masks, targets),
            agreed=_parse_agreement(agreed) if agreed else None,
            signature=fields.raw(header, "signature", 64),
        )


def _parse_agreement(values: Sequence[object]) -> Agreement:
    table = dict(zip(("id", "digest"), values, strict=False))
    return Agreement(group_id=parse_group_id(table.get("id")), digest=fields.exactly(table, "digest", DIGEST_BYTES))


def _parse_ledger(header: fields.Header, masks: memoryview, targets: memoryview) -> Ledger:
    version = fields.integer(header, "version", 0, MAX_VERSION)
    values = fields.integers(header, "values", MAX_GROUP_UNITS, 0, MAX_VALUES)
    num_parts = fields.integers(header, "parts", MAX_GROUP_UNITS, 1, 2)
    chain_bytes = CHAIN_BYTES if version else 0
    chains = fields.exactly(header, "chains", chain_bytes * len(values))
    if len(num_parts) != len(values) or not values:
        raise BadRequestError(f"a card names as many units' parts as sizes, at least one, got {len(num_parts)} and {len(values)}")
    held = parse_masks(masks, sum(num_parts), MAX_MICRO_BATCHES)
    units, at = [], 0
    for place, (size, count) in enumerate(zip(values, num_parts, strict=True)):
        chain = chains[chain_bytes * place : chain_bytes * (place + 1)]
        units.append(UnitSum(num_values=size, chain=chain, held=held[at : at + count]))
        at += count
    ledger = Ledger(version=version, units=tuple(units))
    return replace(ledger, num_targets=_parse_targets(ledger.any_held, targets))


def _parse_targets(union: int, data: memoryview) -> dict[int, int]:
    count = union.bit_count()
    if len(data) != 4 * count:
        raise BadRequestError(f"the target tokens of {count} take {4 * count} bytes, got {len(data)}")
    return dict(zip(indices_of(union), struct.unpack(f"<{count}I", data), strict=True))


def pack_cards(cards: Sequence[Card]) -> tuple[list[int], bytes]:
    encoded = [card.encode() for card in cards]
    return [len(each) for each in encoded], b"".join(encoded)


def parse_cards(received: frame.Frame) -> tuple[Card, ...]:
    (data,) = frame.buffers_of(received, 1)
    lengths = fields.integers(received.header, "lengths", MAX_MEMBERS, 1, MAX_CARDS_BYTES)
    if sum(lengths) != len(data):
        raise BadRequestError(f"cards of {sum(lengths)} bytes in a buffer of {len(data)}")
    cards, at = [], 0
    for length in lengths:
        cards.append(Card.parse(data[at : at + length]))
        at += length
    return tuple(cards)
