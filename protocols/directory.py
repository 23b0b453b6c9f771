"""Asking a peer for the entries of a model's peers.

Or for the names of all models. The entries are as the peers themselves signed them.

Who answers proves nothing by it: it can leave entries out, never make one up. An asker therefore asks several peers, checks every
signature (`entries.py`), and keeps the newest of each author.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from protocols import fields, frame
from protocols.entries import MAX_VALUE_BYTES, SignedEntry, key_id, model_key, names_key
from protocols.errors import BadRequestError, SwarmError, shown
from protocols.ids import MAX_MODEL_NAME, PUBLIC_KEY_BYTES, PeerId, peer_id_of, public_bytes
from protocols.records import BUCKETS, MAX_MODELS, PeerRecord, bucket

MAX_ENTRIES: Final = 2_000
MAX_REPLY_BYTES: Final = 4 << 20
MAX_SWARM_NAME: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryRequest:
    """Which peers serve this model of this swarm?"""

    swarm: str
    model: str
    """A model's name; empty = the names of all models that peers announce."""

    def encode(self) -> bytes:
        return frame.encode({"t": "directory?", "swarm": self.swarm, "model": self.model})

    @classmethod
    def parse(cls, data: bytes) -> DirectoryRequest:
        header = frame.decode_kind(data, "directory?").header
        return cls(
            swarm=fields.text(header, "swarm", MAX_SWARM_NAME),
            model=fields.text(header, "model", MAX_MODEL_NAME),
        )

    def key(self, peer: PeerId) -> str:
        """The key under which this peer's answer to the question stands."""
        number = bucket(peer)
        return model_key(self.swarm, self.model, number) if self.model else names_key(self.swarm, number)

    def all_keys(self) -> list[str]:
        """All keys whose entries answer the question."""
        numbers = range(BUCKETS)
        return [model_key(self.swarm, self.model, n) if self.model else names_key(self.swarm, n) for n in numbers]


@dataclass(frozen=True, slots=True)
class DirectoryReply:
    """Entries by their authors, signatures not checked yet."""

    entries: tuple[tuple[PeerId, SignedEntry], ...]

    def encode(self) -> bytes:
        """The frame of as many of the first entries as its bounds allow: who answers puts first whom it knows."""
        kept = list(_bounded(self.entries))
        table = [[public_bytes(peer), entry.expires_s, len(entry.value)] for peer, entry in kept]
        return frame.encode({"t": "directory", "e": table}, [b"".join(entry.value for _peer, entry in kept)])

    @classmethod
    def parse(cls, data: bytes) -> DirectoryReply:
        """What a peer answered; BadRequestError or FrameError out of bounds."""
        received = frame.decode_kind(data, "directory")
        (buffer,) = frame.buffers_of(received, 1)
        if len(buffer) > MAX_REPLY_BYTES:
            raise BadRequestError(f"a directory's answer has at most {MAX_REPLY_BYTES} bytes, got {len(buffer)}")
        values, at, found = bytes(buffer), 0, []
        for line in fields.array(received.header, "e", MAX_ENTRIES):
            peer, expires_s, size = _line(line)
            found.append((peer, SignedEntry(values[at : at + size], expires_s)))
            at += size
        if at != len(values):
            raise BadRequestError(f"a directory's answer has {len(values)} bytes, but its entries {at}")
        return cls(tuple(found))


def _bounded(entries: Sequence[tuple[PeerId, SignedEntry]]) -> Iterator[tuple[PeerId, SignedEntry]]:
    left = MAX_REPLY_BYTES
    for peer, entry in entries[:MAX_ENTRIES]:
        left -= len(entry.value)
        if left < 0:
            return
        yield peer, entry


def _line(value: Any) -> tuple[PeerId, float, int]:
    if not isinstance(value, list) or len(value) < 3 or not isinstance(value[0], bytes) or len(value[0]) != PUBLIC_KEY_BYTES:
        raise BadRequestError(f"a directory's entry is [public key, expiry, bytes], got {shown(value)}")
    table = {"expiry": value[1], "bytes": value[2]}
    return peer_id_of(value[0]), fields.number(table, "expiry", 0, 1e12), fields.integer(table, "bytes", 0, MAX_VALUE_BYTES)


# --- what may stand under a key


def encode_names(models: Sequence[str]) -> bytes:
    """The payload under a `names_key`: the models that a peer announces."""
    return frame.encode({"t": "models", "models": list(models)})


def parse_names(payload: bytes) -> tuple[str, ...]:
    """The models that a peer says it announces; FrameError or BadRequestError otherwise."""
    return fields.texts(frame.decode_kind(payload, "models").header, "models", MAX_MODELS, MAX_MODEL_NAME)


def belongs(swarm: str, key: bytes, author: PeerId, payload: bytes) -> bool:
    """May this author say that under the key (`entries.key_id`) in this swarm?

    Its names, under the names key of its bucket; or its record, under the key of a model that the record names. Keys are hashes, so
    who stores an entry can only make the key anew from what the entry says. Anything else would fill the storage of others.
    """
    number = bucket(author)
    try:
        if key == key_id(names_key(swarm, number)):
            parse_names(payload)
            return True
        record = PeerRecord.parse(payload)
    except SwarmError:
        return False
    return record.peer == author and any(key == key_id(model_key(swarm, name, number)) for name in record.names)
