"""The directory of one swarm in the DHT: our announcement, renewed until withdrawn, and snapshots of everybody's.

Keys are namespaced by the swarm's name. The peers of a model spread over 8 keys by a hash of their PeerID; 8 more keys hold, for
every peer, just the names of its models, so that `swarm status` finds what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from protocols import fields, frame
from protocols.defaults import RECORD_LIFE_S, RECORD_RENEW_S
from protocols.errors import SwarmError
from protocols.ids import PeerId, short_peer
from protocols.records import BUCKETS, MAX_SPANS, PeerRecord, bucket
from swarm.directory.snapshot import Snapshot

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""Pause after an announcement that nobody took."""

WITHDRAW_S = 2.0
_MAX_NAME = 200


class Entry(Protocol):
    """What one peer says under a key."""

    @property
    def payload(self) -> bytes: ...

    @property
    def expires_s(self) -> float: ...


class Book(Protocol):
    """What a directory needs of `swarm.dht.node.Dht`."""

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = ...) -> bool: ...

    async def get(self, keys: Sequence[str], timeout_s: float = ...) -> Mapping[str, Mapping[PeerId, Entry]]: ...


class Directory:
    """One swarm's directory, as seen and written by one peer."""

    def __init__(self, swarm: str, peer: PeerId, book: Book) -> None:
        self._swarm, self._peer, self._book = swarm, peer, book
        self._make_record: Callable[[], PeerRecord] | None = None
        self._models: tuple[str, ...] = ()
        self._expires_s = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._storing = asyncio.Lock()

    def _model_key(self, model: str, number: int) -> str:
        return f"murmuration/1\0{self._swarm}\0model\0{model}\0{number}"

    def _names_key(self, number: int) -> str:
        return f"murmuration/1\0{self._swarm}\0names\0{number}"

    async def announce(self, make_record: Callable[[], PeerRecord], models: Sequence[str]) -> None:
        """Announce now, and every RECORD_RENEW_S until `withdraw`. `make_record` is asked each time; `models` are names.

        Returns when the first announcement is stored, by ourselves at least; where it is not, the renewal goes on trying.
        A second call replaces the record and adds its models.
        """
        self._make_record = make_record
        self._models = tuple(dict.fromkeys((*models, *self._models)))[:MAX_SPANS]
        await self.refresh()
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="directory renewal")

    async def refresh(self) -> bool:
        """Push the record at once, as after a change of state. False where nobody took it; raises where it cannot be encoded."""
        if self._make_record is None:
            return False
        async with self._storing:
            record = self._make_record().fitted()
            assert record.peer == self._peer, "a peer announces only itself"
            return await self._say(record.encode(), frame.encode({"t": "models", "models": list(self._models)}), RECORD_LIFE_S)

    async def _say(self, payload: bytes, names: bytes, life_s: float) -> bool:
        self._expires_s = max(time.time() + life_s, self._expires_s + 0.001)  # what is not later is refused
        number = bucket(self._peer)
        said = [(self._model_key(model, number), payload) for model in self._models] + [(self._names_key(number), names)]
        return all(await asyncio.gather(*(self._book.store(key, data, self._expires_s) for key, data in said)))

    async def _renew(self) -> None:
        pause_s = RECORD_RENEW_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                is_stored = await self.refresh()
            except SwarmError as error:
                log.warning("our record cannot be announced: %s", error)
                is_stored = False
            pause_s = RECORD_RENEW_S if is_stored else RETRY_S

    async def withdraw(self) -> None:
        """Stop renewing, and tell who stores our record that it no longer holds; at most WITHDRAW_S. Harmless if nothing was announced."""
        renewing, self._renewing = self._renewing, None
        if renewing:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        if self._make_record is None:
            return
        self._make_record = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAW_S), self._storing:
                await self._say(b"", b"", RECORD_LIFE_S)

    async def snapshot(self, model: str) -> Snapshot:
        """Everybody who announces `model`, ourselves included. What does not parse is left out."""
        found = await self._book.get([self._model_key(model, number) for number in range(BUCKETS)])
        newest: dict[PeerId, Entry] = {}
        for entries in found.values():
            for peer, entry in entries.items():
                if peer not in newest or entry.expires_s > newest[peer].expires_s:
                    newest[peer] = entry
        records = (_read(peer, entry) for peer, entry in sorted(newest.items()))
        return Snapshot(model, tuple(record for record in records if record), time.time())

    async def models(self) -> dict[str, int]:
        """Names that are announced in this swarm, with the number of peers of each; most peers first."""
        found = await self._book.get([self._names_key(number) for number in range(BUCKETS)])
        counts: dict[str, int] = {}
        for entries in found.values():
            for entry in entries.values():
                for name in set(_names(entry.payload)):
                    counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _read(peer: PeerId, entry: Entry) -> PeerRecord | None:
    if not entry.payload:
        return None
    try:
        record = PeerRecord.parse(entry.payload)
    except SwarmError as error:
        log.debug("the record of peer %s does not parse: %s", short_peer(peer), error)
        return None
    return record if record.peer == peer else None


def _names(payload: bytes) -> tuple[str, ...]:
    if not payload:
        return ()
    try:
        return fields.texts(frame.decode_kind(payload, "models").header, "models", MAX_SPANS, _MAX_NAME)
    except SwarmError:
        return ()
