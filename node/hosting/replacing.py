"""A node gets other weights while it serves.

The next version's host comes first, the old one's end last. Each version has a host of its own, with engine, captured graphs and
sequences, and a session's grant names the version, so sessions finish on the one that they began with, and new sessions find the new one.
Up to `keep` older versions go on serving beside the newest: sessions on them find replacements for hops that die, and new ones may begin
with them as long as not all of a route has the newest. What is older is drained as at a move (`handover.py`): sessions that are still there
after `drain_s`, or when the next version comes, go on at a replica that has theirs.

If the memory does not hold another copy of the parameters, older versions are ended at once, the oldest first; if that is not enough, the
newest one is ended, too, and its parameters are written in place.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable, Sequence

from node.serving import handover
from node.serving.host import Host
from node.units.host_units import Changes
from protocols.defaults import DRAIN_S
from protocols.weights_id import Weights

log = logging.getLogger(__name__)


Renew = Callable[[Host], Awaitable[Host]]
"""Makes a host of the newest weights of a host's units (`HostMaker.renew`), and starts it (`renew` does not)."""


class Replacer:
    """Changes the weights of one host's units, one version after the other. Belongs to one event loop."""

    def __init__(
        self,
        host: Host,
        *,
        renew: Renew,
        dispatcher: handover.Opening,
        presence: handover.Announcing,
        free_bytes: Callable[[], int],
        drain_s: float = DRAIN_S,
        keep: int = 0,
    ) -> None:
        """keep: older versions that go on serving.

        host: it serves units of its own (`Host.engines`). free_bytes: what the device's memory takes beside all that is loaded."""
        assert host.unit_engines is not None
        self.host, self._units = host, host.unit_engines.units
        self._renew, self._dispatcher, self._presence, self._free_bytes = renew, dispatcher, presence, free_bytes
        self._drain_s, self._keep = drain_s, keep
        self._older: list[Host] = []
        """They serve beside the newest, the oldest first."""
        self._leaving: dict[Host, tuple[asyncio.Task[None], asyncio.Event]] = {}
        """Hosts of older versions, the oldest first; the event makes one leave at once."""
        self._turn = asyncio.Lock()
        self._changing: asyncio.Task[None] | None = None
        """It has the turn."""

    async def replace(self, changes: Changes, weights: Weights) -> None:
        """Serve `weights` from now on: these tensors in place of those of the same names, and the others as they are.

        BadRequestError leaves all as it was. After ModelNotSupportedError (no engine is exact with these numbers) the version before goes
        on, and the next `replace` follows that one. But if memory holds one version only, the node serves nothing then, and the next
        `replace` has to give those tensors again. A call that is cancelled after it began is carried out to its end.
        """
        await self._turn.acquire()
        self._changing = asyncio.create_task(self._replace(changes, weights), name="new weights")
        await asyncio.shield(self._changing)

    async def _replace(self, changes: Changes, weights: Weights) -> None:
        try:
            self._units.check(changes, weights)
            if self._keep:  # drained for as long as one version: else many copies would pile up
                await self._end_all(list(self._leaving))
            await self._make_room(changes)
            old, self.host = self.host, await self._next_host(changes, weights)
            try:
                await handover.begin(self.host, self._dispatcher, self._presence)
            finally:
                if not old.is_draining:
                    self._older.append(old)
                while len(self._older) > self._keep:
                    self._retire(self._older.pop(0))
        finally:
            self._turn.release()

    async def _next_host(self, changes: Changes, weights: Weights) -> Host:
        assert self.host.unit_engines is not None
        try:
            await asyncio.to_thread(self._units.replace, changes, weights)
            return await self._renew(self.host)
        except BaseException:
            self._units.restore(self.host.unit_engines.readings)
            raise

    async def close(self) -> None:
        """End the older versions, now; the host of the newest version stays."""
        async with self._turn:
            await self._end_all([*self._leaving, *self._older])

    async def _make_room(self, changes: Changes) -> None:
        for host in [*self._leaving, *self._older, *([] if self.host.is_draining else [self.host])]:
            if self._has_memory(changes):
                return
            log.info("memory for other weights: the host of %s is ended", host.served.weights)
            await self._end(host)
        gc.collect()  # what the last one's engine held

    def _has_memory(self, changes: Changes) -> bool:
        needed = self._units.added_bytes(changes)
        if needed > self._free_bytes():
            gc.collect()  # hosts that have ended: modules and configs refer to each other
        return needed <= self._free_bytes()

    def _retire(self, host: Host) -> None:
        hurry = asyncio.Event()
        leaving = handover.retire(host, self._dispatcher, self._presence, self._drain_s, hurry)
        self._leaving[host] = asyncio.create_task(leaving, name="old weights"), hurry
        self._leaving[host][0].add_done_callback(lambda task: self._left(host, task))

    def _left(self, host: Host, task: asyncio.Task[None]) -> None:
        del self._leaving[host]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the host of %s was ended, but not as it should", host.served.weights, exc_info=error)

    async def _end_all(self, hosts: Sequence[Host]) -> None:
        for host in hosts:
            await self._end(host)

    async def _end(self, host: Host) -> None:
        """Its sessions go on elsewhere, now."""
        if host in self._older:
            self._older.remove(host)
            self._retire(host)
        if host is self.host:
            self._retire(host)
        if host in self._leaving:
            task, hurry = self._leaving[host]
            hurry.set()
            await asyncio.wait([task])
