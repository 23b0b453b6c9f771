"""Connects to the hop below, in the background.

Once per epoch, and never two at a time for one session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from protocols.errors import InternalError, SwarmError
from protocols.ids import short
from protocols.inference import Fork, Grant
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream, OnMessage

log = logging.getLogger(__name__)


class Successor:
    """Dials for one session; steps can be computed, and are retained, meanwhile."""

    def __init__(
        self,
        links: Links,
        dtype: str,
        on_message: OnMessage,
        on_lost: Callable[[MessageStream | None, SwarmError | None], Awaitable[None]],
        on_wire: Callable[[MessageStream, int], Awaitable[None]],
    ) -> None:
        """on_lost: is told, with wire None, that the hop below cannot be reached. on_wire: gets the wire and its epoch."""
        self._links, self._dtype = links, dtype
        self._on_message, self._on_lost, self._on_wire = on_message, on_lost, on_wire
        self._task: asyncio.Task[None] | None = None
        self._epoch = -1

    @property
    def is_dialling(self) -> bool:
        """A connection to the hop below is under way; the dial itself has a deadline."""
        return self._task is not None and not self._task.done()

    def is_new(self, epoch: int) -> bool:
        """Was nothing dialled in this epoch? A repeated word must not make us dial again and again."""
        return epoch > self._epoch

    def dial(self, grant: Grant, index: int, fork: Fork | None) -> None:
        """Connect to hop `index` in a new epoch; what was being tried in an older one ends."""
        self.stop()
        self._epoch = grant.epoch
        self._task = asyncio.create_task(self._connect(grant, index, fork))

    def stop(self) -> None:
        """Connect no more."""
        if self._task is not None:
            self._task.cancel()

    async def _connect(self, grant: Grant, index: int, fork: Fork | None) -> None:
        try:
            wire = await self._links.open(grant, index, self._dtype, self._on_message, self._on_lost, fork)
        except SwarmError as error:
            await self._on_lost(None, error)
        except Exception as error:
            log.exception("session %s: dialling hop %d failed by a fault of ours", short(grant.session), index)
            fault = InternalError(f"the hop above could not dial: {type(error).__name__}; its log says more")
            await self._on_lost(None, fault)
        else:
            await self._on_wire(wire, grant.epoch)
