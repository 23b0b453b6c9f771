"""The dispatcher: passes each call to the span that it names.

The server must listen before a span can be chosen, and a node that moves holds two spans for a while.

A session goes to the host of the span that its route names for this hop, or else to one whose span holds it.
"""

from __future__ import annotations

from node.serving.host import Host
from node.serving.servicer import SessionServicer
from protocols import services
from protocols.errors import DrainingError
from protocols.ids import Span
from protocols.inference import Attach, Open
from protocols.progress import Progress, ProgressRequest
from swarm.inference.hops import Hops
from swarm.rpc.call import Call, Handler


class Doors:
    """Opens and closes with each host; before the first one, calls are refused."""

    def __init__(self) -> None:
        self._hosts: dict[Span, Host] = {}

    def open(self, host: Host) -> None:
        """From now on, sessions reach the host. It has started."""
        self._hosts[host.served.span] = host

    def close(self, host: Host) -> None:
        """From now on they do not."""
        if self._hosts.get(host.served.span) is host:
            del self._hosts[host.served.span]

    def handlers(self) -> dict[str, Handler]:
        """By method name, for the peer's server."""
        return {**SessionServicer(self._hops_for).handlers(), services.PROGRESS.name: self._progress}

    async def _progress(self, request: bytes, call: Call) -> bytes:
        """How far the caller's own session is; a stranger's session counts as unknown."""
        asked = ProgressRequest.parse(request)
        found = (host.hops.find(call.peer, asked.session, asked.span) for host in self._hosts.values())
        hop = next((hop for hop in found if hop is not None), None)
        return (Progress() if hop is None else hop.progress).encode()

    def _any_host(self) -> Host:
        if not self._hosts:
            raise DrainingError("this node is still loading its blocks: try another one, or again in a moment")
        return next(iter(self._hosts.values()))

    def _hops_for(self, opening: Open | Attach) -> Hops:
        route = opening.grant.route
        wanted = route[opening.index if isinstance(opening, Open) else -1].span
        around = next((host for span, host in reversed(self._hosts.items()) if wanted.is_within(span)), None)  # the newest
        return (self._hosts.get(wanted) or around or self._any_host()).hops  # any host says what is served here instead
