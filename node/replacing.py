"""A node gets other weights while it serves.

The next version's host comes first, the old one's end last. Each version has a host of its own, with engine, captured graphs and
sequences, and a session's grant names the version, so sessions finish on the one that they began with, and new sessions find the new one.
The old host is drained as at a move (`handover.py`): sessions that are still there after `drain_s` go on at a replica that has theirs.

If the memory does not hold another copy of the parameters, versions that are being drained are ended at once, the oldest first; if that is
not enough, the serving one is ended, too, and its parameters are written in place.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable

from node import handover
from node.serving.host import Host
from node.units.host_units import Changes
from protocols.defaults import DRAIN_S
from protocols.weights_id import Weights

log = logging.getLogger(__name__)


Renew = Callable[[Host], Awaitable[Host]]
"""Makes a host of the newest weights of a host's units (`HostMaker.renew`), and starts it."""


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
    ) -> None:
        """host: it serves units of its own (`Host.engines`). free_bytes: what the device's memory takes beside all that is loaded."""
        assert host.engines is not None
        self.host, self._units = host, host.engines.units
        self._renew, self._dispatcher, self._presence, self._free_bytes = renew, dispatcher, presence, free_bytes
        self._drain_s, self._is_serving = drain_s, True
        self._leaving: dict[Host, tuple[asyncio.Task[None], asyncio.Event]] = {}
        """Hosts of older versions, the oldest first; the event makes one leave at once."""
        self._turn = asyncio.Lock()

    async def replace(self, changes: Changes, weights: Weights) -> None:
        """Serve `weights` from now on: these tensors in place of those of the same names, and the others as they are.

        BadRequestError leaves all as it was. ModelNotSupportedError (no engine is exact with these numbers): the version before goes on,
        unless the memory holds one only; then the node serves nothing, and the next `replace` may succeed.
        """
        async with self._turn:
            self._units.check(changes, weights)
            await self._make_room(changes)
            await asyncio.to_thread(self._units.replace, changes, weights)
            old, self.host = self.host, await self._renew(self.host)
            await handover.begin(self.host, self._dispatcher, self._presence)
            if self._is_serving:
                self._retire(old)
            self._is_serving = True

    async def close(self) -> None:
        """End what is being drained, now; the host of the newest version stays."""
        async with self._turn:
            for host in list(self._leaving):
                await self._end(host)

    async def _make_room(self, changes: Changes) -> None:
        for host in [*self._leaving, *([self.host] if self._is_serving else [])]:
            needed, free = self._units.added_bytes(changes), self._free_bytes()
            if needed <= free:
                return
            log.info("other weights take %d bytes, %d are free: the host of %s is ended", needed, free, host.served.weights)
            await self._end(host)

    def _retire(self, host: Host) -> None:
        hurry = asyncio.Event()
        leaving = handover.retire(host, self._dispatcher, self._presence, self._drain_s, hurry)
        self._leaving[host] = (asyncio.create_task(leaving, name="old weights"), hurry)
        self._leaving[host][0].add_done_callback(lambda _: self._leaving.pop(host, None))

    async def _end(self, host: Host) -> None:
        """Its sessions go on elsewhere, now."""
        if host is self.host:
            self._is_serving = False
            self._retire(host)
        if host in self._leaving:
            task, hurry = self._leaving[host]
            hurry.set()
            await asyncio.wait([task])
            gc.collect()  # modules and configs refer to each other
