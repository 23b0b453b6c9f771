"""Passes each call to the weights and blocks that it names.

The server must listen before blocks can be chosen, and a node holds several: while it moves, or of several models.

A session goes to the host of its weights and of exactly the blocks that its route names for this hop, else to a host of more blocks than
these; to the newest of several. If there is none, one of the hosts refuses the session, and says what is served here instead.
"""

from __future__ import annotations

from node.serving.host import Host
from node.serving.servicer import SessionServicer
from protocols import services
from protocols.errors import DrainingError
from protocols.inference import Attach, Open
from protocols.progress import Progress, ProgressRequest
from protocols.units import Blocks, is_part
from protocols.weights_id import Weights, difference
from swarm.inference.hop.hops import Hops
from swarm.rpc.call import Call, Handler


class Dispatcher:
    """The node's hosts, by weights and blocks. While it has none, calls raise DrainingError."""

    def __init__(self) -> None:
        self._hosts: dict[tuple[Weights, Blocks], Host] = {}
        self._is_paused = False

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All of them, the newest last; from any thread."""
        return tuple(self._hosts.values())

    @property
    def is_paused(self) -> bool:
        """No session begins at any host, those to come included."""
        return self._is_paused

    @is_paused.setter
    def is_paused(self, is_paused: bool) -> None:
        self._is_paused = is_paused
        for host in self._hosts.values():
            host.pause(is_paused)

    @property
    def num_sessions(self) -> int:
        """Open sessions of all hosts; from any thread."""
        return sum([host.num_sessions for host in self.hosts])

    def open(self, host: Host) -> None:
        """From now on, sessions reach the host. It has started. If this node is paused, the host is, too."""
        host.pause(self._is_paused)
        self._hosts[_key(host)] = host

    def close(self, host: Host) -> None:
        """From now on, new sessions do not reach the host. Does nothing for a host that another one has replaced."""
        if self._hosts.get(_key(host)) is host:
            del self._hosts[_key(host)]

    def handlers(self) -> dict[str, Handler]:
        """By method name, for the peer's server."""
        return {**SessionServicer(self._hops_for).handlers(), services.PROGRESS.name: self._progress}

    async def _progress(self, request: bytes, call: Call) -> bytes:
        """How far the caller's own session is; another client's session counts as unknown."""
        asked = ProgressRequest.parse(request)
        found = (host.hops.find(call.peer, asked.session, asked.unit.span) for host in self._hosts.values())
        hop = next((hop for hop in found if hop is not None), None)
        return (Progress() if hop is None else hop.progress).encode()

    def host_of(self, weights: Weights, wanted: Blocks) -> Host:
        """The host that fits these weights and blocks best, which may not be well: it is the caller who checks. DrainingError: none."""
        if not self._hosts:
            raise DrainingError("this node is still loading its blocks: try another one, or again in a moment")

        def fits(host: Host) -> tuple[bool, bool, bool]:
            ours = host.served
            return not difference(ours.weights, weights), is_part(wanted, ours.blocks), wanted == ours.blocks

        return max(reversed(self._hosts.values()), key=fits)

    def _hops_for(self, opening: Open | Attach) -> Hops:
        grant = opening.grant
        return self.host_of(grant.weights, grant.route[opening.index if isinstance(opening, Open) else -1].unit).hops


def _key(host: Host) -> tuple[Weights, Blocks]:
    return host.served.weights, host.served.blocks
