"""A group of replicas that average the gradients of some units."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Final, NewType

import msgpack

from protocols import fields, frame
from protocols.defaults import MAX_GROUP_UNITS, MAX_MEMBERS
from protocols.errors import BadRequestError
from protocols.ids import ModelId, PeerId, parse_peer_id, short_peer
from protocols.parts_of_units import Part, parts_of
from protocols.runs import AVERAGING_CODECS, MAX_DEADLINE_S, MAX_MICRO_BATCHES, MIN_DEADLINE_S
from protocols.units import Unit, parse_unit
from protocols.weights_id import CHAIN_BYTES, MAX_VERSION

GroupId = NewType("GroupId", bytes)
"""16 random bytes, chosen by the trainer: one attempt to close one version of some units."""

GROUP_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32


def parse_group_id(value: object) -> GroupId:
    """BadRequestError for anything but 16 bytes."""
    return GroupId(fields.exactly({"id": value}, "id", GROUP_ID_BYTES))


def parse_chains(data: bytes | memoryview) -> tuple[bytes, ...]:
    """Of units in a known order, one after the other. BadRequestError for another number of bytes, or too many."""
    if len(data) % CHAIN_BYTES or len(data) > CHAIN_BYTES * MAX_GROUP_UNITS:
        raise BadRequestError(f"at most {MAX_GROUP_UNITS} chains of {CHAIN_BYTES} bytes, got {len(data)} bytes")
    return tuple(bytes(data[at : at + CHAIN_BYTES]) for at in range(0, len(data), CHAIN_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One replica of a group's units: who, where, and which certificate to pin (DER; empty = fetch it and check its owner)."""

    peer: PeerId
    addresses: tuple[str, ...] = ()
    certificate: bytes = b""

    def pack(self) -> list[object]:
        return [self.peer, list(self.addresses), self.certificate]

    @classmethod
    def parse(cls, value: object) -> Member:
        if not isinstance(value, list) or len(value) != 3:
            raise BadRequestError("a member of a group is a list of peer, addresses and certificate")
        table = dict(zip("pac", value, strict=True))
        return cls(
            peer=parse_peer_id(value[0]), addresses=fields.addresses(table, "a", 8), certificate=fields.raw(table, "c", 4_096)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Replicas that are to agree on the gradient sums of some units of one version. BadRequestError out of bounds."""

    id: GroupId
    run: ModelId
    version: int
    """Optimizer steps that the units have behind them; agreeing and applying makes it one more."""
    units: tuple[Unit, ...]
    """Elementary ones, in this order, each once: all members host all of them."""
    members: tuple[Member, ...]
    """Each once; the first is the leader. This is the order in which parts are added."""
    num_micro_batches: int
    """M: the batch is the indices 0 … M-1."""
    chains: tuple[bytes, ...] = ()
    """Of the units at this version, as the trainer knows them from the step before; () = it has not made that step. If members have
    different chains (a fork: a cut network has healed), those with these go on, in every group of the version."""
    codec: str = "float32"
    deadline_s: float = 30.0
    """How long each wait for a member may take: for its card, for its vote, for a decision."""

    KIND: ClassVar[str] = "group"

    def __post_init__(self) -> None:
        peers = {member.peer for member in self.members}
        if not 1 <= len(self.members) <= MAX_MEMBERS or len(peers) != len(self.members):
            raise BadRequestError(f"a group has 1 to {MAX_MEMBERS} members, each once, got {len(self.members)}")
        if not 1 <= len(self.units) <= MAX_GROUP_UNITS or len(set(self.units)) != len(self.units):
            raise BadRequestError(f"a group has 1 to {MAX_GROUP_UNITS} units, each once, got {len(self.units)}")
        if not 1 <= self.num_micro_batches <= MAX_MICRO_BATCHES or self.codec not in AVERAGING_CODECS:
            raise BadRequestError(
                f"a group has 1 to {MAX_MICRO_BATCHES} micro-batches and a codec of {', '.join(AVERAGING_CODECS)}, "
                f"got {self.num_micro_batches} and {self.codec[:20]!r}"
            )
        if len(self.chains) not in (0, len(self.units)):
            raise BadRequestError(f"a group of {len(self.units)} units has a chain for each, or none, got {len(self.chains)}")
        assert self.parts

    @property
    def parts(self) -> tuple[Part, ...]:
        """What ledgers count, in the units' order. BadRequestError if a unit is not elementary."""
        return tuple(part for unit in self.units for part in parts_of(unit))

    @property
    def whole(self) -> int:
        """The mask of all indices of the batch."""
        return (1 << self.num_micro_batches) - 1

    @property
    def leader(self) -> Member:
        return self.members[0]

    def place_of(self, peer: PeerId) -> int:
        """Which member it is; BadRequestError if it is none."""
        for place, member in enumerate(self.members):
            if member.peer == peer:
                return place
        raise BadRequestError(f"peer {short_peer(peer)} is no member of group {self.id.hex()[:8]}")

    def digest(self) -> bytes:
        """32 bytes that stand for all of it, in signatures."""
        return hashlib.sha256(msgpack.packb(list(self.pack().items()))).digest()

    def pack(self) -> dict[str, object]:
        return {"id": self.id, "run": str(self.run), "version": self.version, "units": list(map(str, self.units)),
                "members": [member.pack() for member in self.members], "count": self.num_micro_batches,
                "chains": b"".join(self.chains), "codec": self.codec, "deadline": float(self.deadline_s)}  # fmt: skip

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND, **self.pack()})

    @classmethod
    def parse(cls, data: bytes) -> Group:
        header = frame.decode_kind(data, cls.KIND).header
        return cls(
            id=parse_group_id(header.get("id")),
            run=fields.model(header, "run"),
            version=fields.integer(header, "version", 0, MAX_VERSION - 1),
            units=tuple(parse_unit(unit) for unit in fields.array(header, "units", MAX_GROUP_UNITS)),
            members=tuple(Member.parse(member) for member in fields.array(header, "members", MAX_MEMBERS)),
            num_micro_batches=fields.integer(header, "count", 1, MAX_MICRO_BATCHES),
            chains=parse_chains(fields.raw(header, "chains", MAX_GROUP_UNITS * CHAIN_BYTES)),
            codec=fields.one_of(header, "codec", AVERAGING_CODECS),
            deadline_s=fields.number(header, "deadline", MIN_DEADLINE_S, MAX_DEADLINE_S),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OfGroup:
    """Names a group: the first frame of a slice, and the question what a member knows of it."""

    id: GroupId

    KIND: ClassVar[str] = "of_group"

    def encode(self) -> bytes:
        return frame.encode({"t": self.KIND, "id": self.id})

    @classmethod
    def parse(cls, data: bytes) -> OfGroup:
        return cls(id=parse_group_id(frame.decode_kind(data, cls.KIND).header.get("id")))
