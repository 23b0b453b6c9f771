"""The directory of one swarm in the DHT.

Our announcement, renewed until withdrawn, and snapshots of all announcements.

Keys are namespaced by the swarm's name. The peers of a model spread over 8 keys by a hash of their PeerID; 8 more keys hold, for
every peer, just the names of its models, so that `swarm status` finds what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from protocols.defaults import RECORD_LIFE_S, RECORD_RENEW_S
from protocols.directory import MAX_ENTRIES, DirectoryReply, DirectoryRequest, encode_names
from protocols.entries import MAX_LIFE_S, SignedEntry, model_key, names_key
from protocols.errors import PeerUnreachableError, SwarmError
from protocols.ids import PeerId
from protocols.records import MAX_MODELS, PeerRecord, bucket
from swarm.clock import SYSTEM, Clock
from swarm.dht.checking import shuffled
from swarm.directory.snapshot import Snapshot, counted, of_entries

log = logging.getLogger(__name__)

RETRY_S = 2.0
"""Seconds of pause after an announcement that no peer took."""

WITHDRAW_S = 2.0
"""Seconds that a withdrawal may take."""


class Book(Protocol):
    """What a directory needs of `swarm.dht.node.Dht`."""

    async def store(self, key: str, payload: bytes, expires_s: float, timeout_s: float = ...) -> bool: ...

    async def get(self, keys: Sequence[str], timeout_s: float = ...) -> Mapping[str, Mapping[PeerId, SignedEntry]]: ...


class Directory:
    """One swarm's directory, as seen and written by one peer."""

    def __init__(
        self,
        swarm: str,
        peer: PeerId,
        book: Book,
        has_met: Callable[[PeerId], bool] = lambda peer: False,
        rng: random.Random | None = None,
        clock: Clock = SYSTEM,
        *,
        life_s: float = RECORD_LIFE_S,
        renew_s: float = RECORD_RENEW_S,
    ) -> None:
        """has_met: peers that have answered us, whose entries come first where not all fit.

        life_s: an announcement expires after so long, unless it is renewed, which happens every `renew_s`.
        """
        self._swarm, self._peer, self._book = swarm, peer, book
        self._has_met, self._rng, self._unix_s = has_met, rng or random.Random(), clock.unix_s
        self._life_s, self._renew_s = life_s, renew_s
        self._make_record: Callable[[], PeerRecord] | None = None
        self._models: tuple[str, ...] = ()
        self._expires_s = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self._storing = asyncio.Lock()

    async def announce(self, make_record: Callable[[], PeerRecord], models: Sequence[str]) -> None:
        """Announce now, and every `renew_s` until `withdraw`. `make_record` is asked each time; `models` are names.

        Returns when the first announcement is stored, by ourselves at least; where it is not, the renewal goes on trying.
        A second call replaces the record and adds its models.
        """
        self._make_record = make_record
        self._models = tuple(dict.fromkeys((*models, *self._models)))[:MAX_MODELS]
        await self.refresh()
        if self._renewing is None and self._make_record is not None:
            self._renewing = asyncio.create_task(self._renew(), name="directory renewal")

    async def refresh(self) -> bool:
        """Push the record at once, as after a change of state. False if no peer took it; raises if it cannot be encoded."""
        async with self._storing:
            if self._make_record is None:  # withdrawn, perhaps while this waited
                return False
            record = self._make_record()
            assert record.peer == self._peer, "a peer announces only itself"
            record = replace(record, also=tuple(model for model in self._models if model not in record.names)).fitted()
            return await self._say(record.encode(), encode_names(self._models))

    async def _say(self, payload: bytes, names: bytes) -> bool:
        self._expires_s = _next_expiry(self._expires_s, self._unix_s(), self._life_s)
        number = bucket(self._peer)
        said = [(model_key(self._swarm, model, number), payload) for model in self._models] + [
            (names_key(self._swarm, number), names)
        ]
        try:
            return all(await asyncio.gather(*(self._book.store(key, data, self._expires_s) for key, data in said)))
        except PeerUnreachableError as error:  # our DHT is being started again, and then the record is pushed anew
            log.warning("our record cannot be announced now: %s", error)
            return False

    async def _renew(self) -> None:
        pause_s = self._renew_s
        while True:
            await asyncio.sleep(pause_s)
            try:
                is_stored = await self.refresh()
            except SwarmError as error:
                log.warning("our record cannot be announced: %s", error)
                is_stored = False
            except Exception:  # a fault of ours; without this task, no other peer would see us after RECORD_LIFE_S
                log.exception("our record cannot be announced")
                is_stored = False
            pause_s = self._renew_s if is_stored else RETRY_S

    async def withdraw(self) -> None:
        """Stop renewing, and tell who stores our record that it no longer holds; at most WITHDRAW_S. Harmless if nothing was announced.

        It does not wait for an announcement that is under way: what expires later counts, and that is the withdrawal.
        """
        renewing, self._renewing = self._renewing, None
        if renewing:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        if self._make_record is None:
            return
        self._make_record = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAW_S):
                await self._say(b"", b"")

    async def snapshot(self, model: str) -> Snapshot:
        """All peers that announce `model`, including this one. If there are too many, a sample.

        Entries that do not parse are skipped.
        """
        return await of_entries(model, dict(await self._look(model)), self._unix_s())

    async def models(self) -> dict[str, int]:
        """Names that are announced in this swarm, with the number of peers of each; in the order of `counted`."""
        return await counted(dict(await self._look("")), self._has_met)

    async def signed(self, model: str) -> DirectoryReply:
        """The same ("" = the names of models) as the peers have signed it, for who asks by gRPC."""
        return DirectoryReply(tuple(await self._look(model)))

    async def _look(self, model: str) -> list[tuple[PeerId, SignedEntry]]:
        """The newest of every author; those of another bucket than their author's were not put there by our code."""
        request = DirectoryRequest(swarm=self._swarm, model=model)
        found = await self._book.get(request.all_keys())
        entries = {peer: entry for key, told in found.items() for peer, entry in told.items() if key == request.key(peer)}
        return shuffled(entries, self._peer, self._has_met, self._rng)[:MAX_ENTRIES]


def _next_expiry(last_s: float, now_s: float, life_s: float) -> float:
    """Later than the last one, since what is not later is refused; unless our clock was set back: then no peer believes the last one."""
    return now_s + life_s if last_s > now_s + MAX_LIFE_S else max(now_s + life_s, last_s + 0.001)
