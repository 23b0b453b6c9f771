"""The gRPC methods of a session: check, decode, pass on.

Messages go to the session's `Hop`; nothing is computed here. `session` is the stream from the hop above (or the client), `attach` the
client's stream at the last hop (step T5 of a token's path).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from protocols import inference, services
from protocols.errors import BadRequestError, PeerUnreachableError
from protocols.ids import short, short_peer
from protocols.inference import Attach, Close, History, Message, Open, Reroute, Step
from swarm import log_ids
from swarm.inference.hop.hop import Hop
from swarm.inference.hop.hops import Hops
from swarm.rpc.call import Call, Handlers
from swarm.rpc.first_message import first_message
from swarm.rpc.stream import Stream
from swarm.streams.message_stream import MessageStream

log = logging.getLogger(__name__)


class SessionServicer:
    """Serves the streams of all sessions at one node."""

    def __init__(self, hops_for: Callable[[Open | Attach], Hops]) -> None:
        """hops_for: the sessions of the host that serves the span of a stream's first message; raises a SwarmError if no host here does."""
        self._hops_for = hops_for

    def handlers(self) -> Handlers:
        return {services.SESSION.name: self.session, services.ATTACH.name: self.attach}

    async def session(self, stream: Stream, call: Call) -> None:
        """Serve one hop of a session: each step is computed once, in order, and its output goes to the next hop.

        The first frame is Open, and proves that the caller is the hop above. A step that was seen before is answered from
        what is retained; one from an older epoch is dropped; a gap is answered with what we wait for (Expect).
        Leaving without Close keeps the session for `resume_s`: the hop above may come back, or a replacement for it.
        """
        opening = await first_message(stream, Open, inference.parse)
        with log_ids.about_session(short(opening.grant.session)):
            await self._carry(stream, call, opening)

    async def attach(self, stream: Stream, call: Call) -> None:
        """Send a session's replies to its client, beginning with the step that Attach names."""
        opening = await first_message(stream, Attach, inference.parse)
        with log_ids.about_session(short(opening.grant.session)):
            await self._carry(stream, call, opening)

    async def _carry(self, stream: Stream, call: Call, opening: Open | Attach) -> None:
        hops = self._hops_for(opening)
        hop = hops.enter(opening, call.peer)
        log.info("%s by %s, blocks %s", type(opening).__name__.lower(), short_peer(call.peer), hop.place.span)

        async def take(wire: MessageStream, message: Message) -> None:
            _check(hops, hop, call, opening, message)
            await hop.put(wire, message)

        wire = MessageStream(stream, take, hop.lose)
        try:
            await hop.put(wire, opening)
        except asyncio.CancelledError:  # the caller went before `run`, which tells the hop otherwise
            await hop.lose(wire, None)
            raise
        refusal = await wire.run()
        if refusal is not None and not isinstance(refusal, PeerUnreachableError):
            raise refusal


def _check(hops: Hops, hop: Hop, call: Call, opening: Open | Attach, message: Message) -> None:
    allowed = (Step, History, Reroute, Close) if isinstance(opening, Open) else ()
    if not isinstance(message, allowed):
        raise BadRequestError(f"{type(message).__name__} does not belong on this stream")
    session = message.grant.session if isinstance(message, Reroute) else message.session
    if session != hop.place.grant.session:
        raise BadRequestError("a stream carries one session, and this message names another")
    if isinstance(message, Reroute):
        hops.check_reroute(message, hop, call.peer)
