"""Connects to the hop below, in the background.

In each route it stays or is dialled, once per epoch, and never two at a time for one session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from protocols.errors import InternalError, PeerUnreachableError, SwarmError
from protocols.ids import short
from protocols.inference import Close, Expect, Fork, Grant, HopLost, Message
from swarm.inference.downstream import Downstream
from swarm.inference.hop import grants
from swarm.inference.hop.place import Place
from swarm.streams.links import Links
from swarm.streams.message_stream import MessageStream

log = logging.getLogger(__name__)


class Successor:
    """Dials for one session; steps can be computed, and are retained, meanwhile."""

    def __init__(
        self,
        links: Links,
        dtype: str,
        down: Downstream,
        on_message: Callable[[MessageStream, Expect | HopLost], Awaitable[None]],
        on_lost: Callable[[MessageStream | None, SwarmError | None], Awaitable[None]],
    ) -> None:
        """down: gets the wire. on_lost: is told, with wire None, that the hop below cannot be reached."""
        self._links, self._dtype, self._down = links, dtype, down
        self._on_message, self._on_lost = on_message, on_lost
        self._task: asyncio.Task[None] | None = None
        self._epoch = -1
        """Of the route; a wire of an older one is not wanted any more."""
        self._dialled = -1
        """The last epoch in which the hop below was dialled: a repeated word must not make us dial again and again."""

    @property
    def is_dialling(self) -> bool:
        """A connection to the hop below is under way; the dial itself has a deadline."""
        return self._task is not None and not self._task.done()

    def follow(self, before: Grant, place: Place, fork: Fork | None) -> None:
        """A route came: the hop below is told of it if it stays, and dialled if it is another one. before: the route until now."""
        grant, wire = place.grant, self._down.wire
        self._epoch = grant.epoch
        if place.is_last:
            return
        stays = wire is not None and wire.is_open and grants.keeps_below(before, grant, place.index)
        if stays and before.epoch < grant.epoch:
            self._down.reroute(grant, place.index + 1)
        elif not stays and grant.epoch > self._dialled:
            self._down.end(Close(session=grant.session, below=False))
            self.stop()
            self._dialled = grant.epoch
            self._task = asyncio.create_task(self._connect(grant, place.index + 1, fork))

    def stop(self) -> None:
        """Connect no more, until the next route."""
        if self._task is not None:
            self._task.cancel()

    async def _connect(self, grant: Grant, index: int, fork: Fork | None) -> None:
        try:
            wire = await self._links.open(grant, index, self._dtype, self._take, self._on_lost, fork)
        except SwarmError as error:
            await self._on_lost(None, error)
        except Exception as error:
            log.exception("session %s: dialling hop %d failed by a fault of ours", short(grant.session), index)
            fault = InternalError(f"the hop above could not dial: {type(error).__name__}; its log says more")
            await self._on_lost(None, fault)
        else:
            if grant.epoch == self._epoch:
                self._down.connect(wire, grant.epoch)
            else:
                await wire.close()

    async def _take(self, wire: MessageStream, message: Message) -> None:
        """The hop below may say what it wants and who is lost. Anything else is not for it to say, and was not checked."""
        if not isinstance(message, Expect | HopLost):
            raise PeerUnreachableError(f"the hop below sent {type(message).__name__}, which does not belong on its stream")
        await self._on_message(wire, message)
