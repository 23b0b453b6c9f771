"""One span at work: engine, runner, sessions and their servicer under one lifetime.

host = Host(engine, served, manifest, kv_bytes_per_token=…)
async with Peer(config, host.handlers()) as peer:
    await host.start(peer.pool)
    ...
    await host.stop()
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.serving.runner import Runner, SessionRows
from node.serving.servicer import SessionServicer
from protocols import services, weights
from protocols.errors import DrainingError, ModelNotFoundError
from protocols.inference import Grant
from swarm.inference.grants import Served
from swarm.inference.hops import HopLimits, Hops
from swarm.inference.links import Links
from swarm.rpc.call import Call, Handlers
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream

if TYPE_CHECKING:
    from node.serving.ends import Ends
    from node.serving.engine import Engine

SWITCH_INTERVAL_S = 0.0002
"""Python's thread switch interval in a node: the default of 5 ms lets a forward keep the event loop waiting (transport.md, §4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy a host is, as its record tells it."""

    free_tokens: int
    queue: int
    step_ms: float
    num_sessions: int


class Host:
    """Serves blocks `span` of `model` with `engine`. `handlers` may be registered before `start`; until then calls are refused."""

    def __init__(
        self,
        engine: Engine,
        served: Served,
        manifest: weights.Manifest,
        *,
        kv_bytes_per_token: int,
        max_positions: int | None = None,
        limits: HopLimits | None = None,
        ends: Ends | None = None,
    ) -> None:
        """ends: embedding, norm and head, where this node hosts them beside its blocks; `served.ends` says the same."""
        assert served.ends == (ends is not None)
        self.served, self.manifest = served, manifest
        self.engine = engine
        self.runner = Runner(engine, max_positions=max_positions, token_bytes=kv_bytes_per_token, ends=ends)
        self._kv_bytes_per_token = max(1, kv_bytes_per_token)
        self._limits = limits or HopLimits()
        self._hops: Hops | None = None
        self._servicer: SessionServicer | None = None

    def handlers(self) -> Handlers:
        """By method name, for the peer's server."""
        return {
            services.SESSION.name: self._session,
            services.ATTACH.name: self._attach,
            services.MANIFEST.name: self._send_manifest,
        }

    async def start(self, pool: ChannelPool) -> None:
        """Begin to serve; `pool` dials the hops below."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.runner.start()
        self._hops = Hops(self.served, Links(pool), self._rows, self._limits)
        self._hops.start()
        hops = self._hops
        self._servicer = SessionServicer(lambda _opening: hops)

    def drain(self) -> None:
        """From now on new sessions are refused; those that are here go on."""
        if self._hops is not None:
            self._hops.is_draining = True

    async def stop(self) -> None:
        """Refuse what is new, finish the running steps, give all memory back. Clients go on with a replica."""
        self.drain()
        if self._hops is not None:
            await self._hops.stop()
        await self.runner.stop()

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused because this span is about to be given up."""
        return self._hops is not None and self._hops.is_draining

    def load(self) -> Load:
        """For the record."""
        free = max(0, self.engine.limit_bytes - self.engine.used_bytes) // self._kv_bytes_per_token
        num_sessions = 0 if self._hops is None else len(self._hops)
        return Load(free_tokens=free, queue=len(self.runner.scheduler), step_ms=self.runner.step_ms, num_sessions=num_sessions)

    @property
    def hops(self) -> Hops:
        """The sessions of this span. DrainingError before `start`."""
        if self._hops is None:
            raise DrainingError("this peer is still starting: try another one, or again in a moment")
        return self._hops

    def _rows(self, grant: Grant) -> SessionRows:
        return SessionRows(self.runner, grant.session, grant.client, len(grant.route))

    def _serving(self) -> SessionServicer:
        if self._servicer is None:
            raise DrainingError("this peer is still starting: try another one, or again in a moment")
        return self._servicer

    async def _session(self, stream: Stream, call: Call) -> None:
        await self._serving().session(stream, call)

    async def _attach(self, stream: Stream, call: Call) -> None:
        await self._serving().attach(stream, call)

    async def _send_manifest(self, request: bytes, call: Call) -> bytes:
        wanted = weights.ManifestRequest.parse(request).model
        if wanted.name != self.served.model.name:
            raise ModelNotFoundError(f"this peer serves {self.served.model.name}, not {wanted.name}")
        return self.manifest.encode()
