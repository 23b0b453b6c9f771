"""Dials the hops of a route.

A session stream to a hop, an attach stream to the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager

from protocols.errors import PeerUnreachableError
from protocols.ids import SessionId, short_peer
from protocols.inference import Attach, Fork, Grant, Hop, Open
from protocols.progress import Progress, ProgressRequest
from protocols.services import ATTACH, PROGRESS, SESSION, Method
from swarm.rpc.pool import ChannelPool
from swarm.streams.dials import Dials
from swarm.streams.message_stream import DEFAULT, MessageStream, MessageStreamLimits, OnLost, OnMessage

DIAL_S = 6.0
"""How long a connection to a hop may take; a live one needs a few round trips, and a warm one none."""

PROGRESS_S = 2.0
"""How long a hop may take to say how far it is."""


class Links:
    """Opens message streams to the peers of a route, each pinned to the certificate that the route names."""

    def __init__(self, pool: ChannelPool, dials: Dials | None = None, limits: MessageStreamLimits = DEFAULT) -> None:
        """dials: bounds, where it is for others that we dial; None: for ourselves."""
        self._pool, self._dials, self._limits = pool, dials, limits

    async def open(
        self, grant: Grant, index: int, dtype: str, on_message: OnMessage, on_lost: OnLost, fork: Fork | None = None
    ) -> MessageStream:
        """A wire to hop `index`, with Open said; PeerUnreachableError where there is no connection. A refusal is a loss of the wire."""
        wire = await self._dial(SESSION, grant, index, on_message, on_lost)
        wire.post(Open(grant=grant, index=index, dtype=dtype, fork=fork))
        return wire.start()

    async def attach(self, grant: Grant, step: int, on_message: OnMessage, on_lost: OnLost) -> MessageStream:
        """A wire on which the last hop sends the replies from `step` on."""
        wire = await self._dial(ATTACH, grant, len(grant.route) - 1, on_message, on_lost)
        wire.post(Attach(grant=grant, step=step))
        return wire.start()

    async def progress(self, hop: Hop, session: SessionId) -> Progress:
        """How far a hop says that it is with a session of ours, within PROGRESS_S."""
        async with asyncio.timeout(PROGRESS_S):
            channel = await self._pool.channel(hop.peer, hop.addresses, hop.certificate)
            request = ProgressRequest(session=session, unit=hop.unit)
            return Progress.parse(await channel.unary(PROGRESS, request.encode(), PROGRESS_S))

    async def _dial(self, method: Method, grant: Grant, index: int, on_message: OnMessage, on_lost: OnLost) -> MessageStream:
        hop = grant.route[index]
        try:
            async with asyncio.timeout(DIAL_S):
                async with self._turn(grant, hop):
                    channel = await self._pool.channel(hop.peer, hop.addresses, hop.certificate)
                stream = await channel.stream(method, is_awaited=False)
                return MessageStream(stream, on_message, on_lost, has_dialled=True, limits=self._limits)
        except TimeoutError:
            raise PeerUnreachableError(
                f"{short_peer(hop.peer)} at {', '.join(hop.addresses)} did not answer within {DIAL_S:.0f} s"
            ) from None

    def _turn(self, grant: Grant, hop: Hop) -> AbstractAsyncContextManager[None]:
        if self._dials is None or self._pool.is_connected(hop.peer):
            return contextlib.nullcontext()
        return self._dials.turn(grant.client)
