"""Averaging: how replicas of training units agree on one gradient sum.

    trainer -> leader     close      Group -> Closed             the leader is the group's first member
    leader  -> member     card       Group -> Card               signed; the member's ledger of these units is closed from here
    leader  -> member     prepare    Prepare -> Prepared         all cards; the reply is the member's vote
    member  -> member     slice      OfGroup, Values … -> Values …   one slice of the all-reduce (`swarm/averaging/exchange.py`)
    leader  -> member     decide     Decide -> Decision
    member  -> member     decision   OfGroup -> Decision         "what do you know of this group?"
    trainer -> member     apply      Apply -> Applied            the agreed sum goes to the optimizer, once

Groups: `groups.py`; sets of indices: `masks.py`; cards: `cards.py`. Each card is signed over the digest of its
group, so it counts in no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

from protocols import fields, frame
from protocols.cards import Card, pack_cards, parse_cards
from protocols.defaults import MAX_GROUP_UNITS, MAX_MEMBERS
from protocols.errors import BadRequestError
from protocols.groups import (
    DIGEST_BYTES,
    GroupId,
    parse_chains,
    parse_group_id,
)
from protocols.ids import ModelId, PeerId, parse_peer_id
from protocols.masks import pack_masks, parse_masks
from protocols.runs import MAX_BATCH_TOKENS, MAX_MICRO_BATCHES
from protocols.units import MAX_UNIT_TEXT, Unit, parse_unit
from protocols.weights_id import MAX_VERSION
from protocols.words import counted, one_line

MAX_SQUARES: Final = 1e300
"""Sum of squares of a unit's gradient sum."""

MAX_REASON: Final = 500
"""Letters of a text that says why."""

Outcome = Literal["agreed", "missing", "behind", "failed"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("agreed", "missing", "behind", "failed")
Said = Literal["unknown", "open", "agreed", "aborted"]
SAID: Final[tuple[Said, ...]] = ("unknown", "open", "agreed", "aborted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare:
    """All cards of a group, in member order: reduce with the others, into scratch, and vote."""

    id: GroupId
    cards: tuple[Card, ...]

    KIND: ClassVar[str] = "prepare"

    def encode(self) -> bytes:
        lengths, data = pack_cards(self.cards)
        return frame.encode({"t": self.KIND, "id": self.id, "lengths": lengths}, [data])

    @classmethod
    def parse(cls, data: bytes) -> Prepare:
        received = frame.decode_kind(data, cls.KIND)
        return cls(id=parse_group_id(received.header.get("id")), cards=parse_cards(received))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A vote: the digest of the reduced bytes; empty = no vote, this member has aborted, and says why and because of whom."""

    digest: bytes = b""
    lost: PeerId | None = None
    """The member for which it waited, if it was one."""
    text: str = ""

    KIND: ClassVar[str] = "prepared"

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND, "digest": self.digest, "lost": self.lost or "", "text": _reason(self.text)})

    @classmethod
    def parse(cls, data: bytes) -> Prepared:
        header = frame.decode_kind(data, cls.KIND).header
        lost = fields.text(header, "lost", 60)
        digest = fields.exactly(header, "digest", 0, DIGEST_BYTES)
        return cls(digest=digest, lost=parse_peer_id(lost) if lost else None, text=fields.text(header, "text", MAX_REASON))


@dataclass(frozen=True, slots=True)
class Values:
    """Encoded values: what they are, and how many bytes are expected, follows from the group and the place in the stream."""

    data: memoryview | bytes

    KIND: ClassVar[str] = "values"

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND}, [self.data])

    @classmethod
    def parse(cls, data: bytes) -> Values:
        (values,) = frame.buffers_of(frame.decode_kind(data, cls.KIND), 1)
        return cls(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decide:
    """How the group ended, by its leader. After an abort, the cards tell each member what it must do with its sum (`plan.py`)."""

    id: GroupId
    is_agreed: bool
    cards: tuple[Card, ...] = ()

    KIND: ClassVar[str] = "decide"

    def encode(self) -> bytes:
        lengths, data = pack_cards(self.cards)
        return frame.encode({"t": self.KIND, "id": self.id, "agreed": self.is_agreed, "lengths": lengths}, [data])

    @classmethod
    def parse(cls, data: bytes) -> Decide:
        received = frame.decode_kind(data, cls.KIND)
        header = received.header
        return cls(id=parse_group_id(header.get("id")), is_agreed=fields.flag(header, "agreed"), cards=parse_cards(received))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a member knows of a group: unknown (it never gave a card, or has restarted since), open, agreed or aborted; and its vote."""

    said: Said
    vote: bytes = b""
    """The digest that it voted for; empty = it has not voted."""

    KIND: ClassVar[str] = "decision"

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND, "said": self.said, "vote": self.vote})

    @classmethod
    def parse(cls, data: bytes) -> Decision:
        header = frame.decode_kind(data, cls.KIND).header
        said: Any = fields.one_of(header, "said", SAID)
        return cls(said=said, vote=fields.exactly(header, "vote", 0, DIGEST_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """How `close` ended.

    agreed: all members hold the same reduced bytes, and the ledgers stay closed until `apply` of `group_id` (which is an older group's if a
    member had agreed before). missing: these indices are in no sum; the ledgers are open again. behind: a member has a later version, or
    another chain that more members have: `behind` must fetch the state. failed: see `lost` and `text`; the ledgers are open again.
    """

    outcome: Outcome
    group_id: GroupId
    version: int
    """Of the units now: agreed sums are not applied yet."""
    digest: bytes = b""
    """Of the reduced bytes, if agreed."""
    chains: tuple[bytes, ...] = ()
    """Of the next version, by the group's units, if this very group has agreed."""
    missing: tuple[int, ...] = ()
    """By the group's parts, as masks."""
    lost: tuple[PeerId, ...] = ()
    """Members that did not answer in time, or broke the exchange: the next group is formed without them."""
    behind: tuple[PeerId, ...] = ()
    """Members that must fetch the state of another."""
    text: str = ""

    KIND: ClassVar[str] = "closed"

    def encode(self) -> bytes:
        header = {"t": self.KIND, "outcome": self.outcome, "id": self.group_id, "version": self.version, "digest": self.digest,
                  "parts": len(self.missing), "lost": list(self.lost), "behind": list(self.behind),
                  "text": _reason(self.text)}  # fmt: skip
        return frame.encode(header, [b"".join(self.chains), pack_masks(self.missing)])

    @classmethod
    def parse(cls, data: bytes) -> Closed:
        received = frame.decode_kind(data, cls.KIND)
        header, (chains, masks) = received.header, frame.buffers_of(received, 2)
        outcome: Any = fields.one_of(header, "outcome", OUTCOMES)
        num_parts = fields.integer(header, "parts", 0, 2 * MAX_GROUP_UNITS)
        if len(masks) and not num_parts:
            raise BadRequestError(f"{len(masks)} bytes of masks of no parts")
        return cls(
            outcome=outcome,
            group_id=parse_group_id(header.get("id")),
            version=fields.integer(header, "version", 0, MAX_VERSION),
            digest=fields.exactly(header, "digest", 0, DIGEST_BYTES),
            chains=parse_chains(chains),
            missing=parse_masks(masks, num_parts, MAX_MICRO_BATCHES) if num_parts else (),
            lost=tuple(map(parse_peer_id, fields.array(header, "lost", MAX_MEMBERS))),
            behind=tuple(map(parse_peer_id, fields.array(header, "behind", MAX_MEMBERS))),
            text=fields.text(header, "text", MAX_REASON),
        )


def _reason(text: str) -> str:
    """Of an error, as `parse` takes it."""
    return one_line(text)[:MAX_REASON]


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Apply the sum on which this group has agreed. Idempotent: a member that has done so answers with what it has now."""

    run: ModelId
    version: int
    """Before the step."""
    id: GroupId

    KIND: ClassVar[str] = "apply"

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND, "run": str(self.run), "version": self.version, "id": self.id})

    @classmethod
    def parse(cls, data: bytes) -> Apply:
        header = frame.decode_kind(data, cls.KIND).header
        return cls(
            run=fields.model(header, "run"),
            version=fields.integer(header, "version", 0, MAX_VERSION - 1),
            id=parse_group_id(header.get("id")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """The units of the applied group at this member: their version and chains now."""

    version: int
    chains: Mapping[Unit, bytes]
    squares: Mapping[Unit, float]
    """Of the same units: the sum of squares of the gradient sum that was applied."""
    num_targets: int
    """Target tokens of the whole batch: the gradient sum divided by it is the mean gradient."""

    KIND: ClassVar[str] = "applied"

    def __post_init__(self) -> None:
        if self.squares.keys() != self.chains.keys():
            raise BadRequestError(f"{counted(len(self.chains), 'chain')} with {counted(len(self.squares), 'sum')} of squares")

    def encode(self) -> bytes:
        header = {"t": self.KIND, "version": self.version, "units": list(map(str, self.chains)),
                  "squares": [float(self.squares[unit]) for unit in self.chains], "targets": self.num_targets}  # fmt: skip
        return frame.encode(header, [b"".join(self.chains.values())])

    @classmethod
    def parse(cls, data: bytes) -> Applied:
        received = frame.decode_kind(data, cls.KIND)
        header, (chains,) = received.header, frame.buffers_of(received, 1)
        units = [parse_unit(text) for text in fields.texts(header, "units", MAX_GROUP_UNITS, MAX_UNIT_TEXT)]
        found = parse_chains(chains)
        if len(found) != len(units) or len(set(units)) != len(units):
            raise BadRequestError(f"{counted(len(units), 'unit')}, each once, with {counted(len(found), 'chain')}")
        squares = [
            fields.number({"squares": one}, "squares", 0, MAX_SQUARES) for one in fields.array(header, "squares", len(units))
        ]
        if len(squares) != len(units):
            raise BadRequestError(f"{counted(len(units), 'unit')} with {counted(len(squares), 'sum')} of squares")
        return cls(
            version=fields.integer(header, "version", 1, MAX_VERSION),
            chains=dict(zip(units, found, strict=True)),
            squares=dict(zip(units, squares, strict=True)),
            num_targets=fields.integer(header, "targets", 0, MAX_BATCH_TOKENS),
        )


def next_chain(chain: bytes, digest: bytes, num_targets: int) -> bytes:
    """The chain of a unit after a step: SHA-256 over its chain, the digest of the reduced bytes and the number of target tokens."""
    return hashlib.sha256(chain + digest + num_targets.to_bytes(8, "big")).digest()
