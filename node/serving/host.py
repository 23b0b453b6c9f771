"""A span that serves: engine, runner and sessions under one lifetime.

`node/serving/dispatcher.py` passes the sessions' streams to it.

host = Host(HostEngines(engine), served, kv_bytes_per_token=…)
await host.start(peer.pool)
dispatcher.open(host)
...
await host.stop()
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from node.device.thread import Device
from node.serving.part_engines import MakePart
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import DrainingError
from protocols.hosted import Load
from protocols.ids import Span
from protocols.inference import Grant
from protocols.units import ENDS
from swarm.access import Gate
from swarm.clock import SYSTEM, Clock
from swarm.inference.hop.grants import Served
from swarm.inference.hop.hops import HopLimits, Hops
from swarm.rpc.pool import ChannelPool
from swarm.streams.dials import Dials
from swarm.streams.links import Links

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine
    from node.serving.unit_engines import UnitEngines

SWITCH_INTERVAL_S = 0.0002
"""Python's thread switch interval in a node: the default of 5 ms lets a forward keep the event loop waiting (transport.md, §4)."""


@dataclass(frozen=True, slots=True)
class HostEngines:
    """What a host computes with."""

    engine: Engine
    """Of all its blocks."""

    ends: Ends | None = None
    """Embedding, norm and head, if this node hosts them beside its blocks; `Served.beside` says the same."""

    make_part: MakePart | None = None
    """An engine of some of the blocks; None = routes can have all of them only."""

    block_ms: float = 0.0
    """How fast `engine` was measured, as `Load` has it."""

    source: UnitEngines | None = None
    """The source of all of these; `Host.stop` closes its readings."""


class Host:
    """Serves the blocks of `served` with `engines`."""

    def __init__(
        self,
        engines: HostEngines,
        served: Served,
        *,
        kv_bytes_per_token: int,
        max_positions: int | None = None,
        limits: HopLimits | None = None,
        device: Device | None = None,
        budget_bytes: int = 0,
        clock: Clock = SYSTEM,
    ) -> None:
        """device: shared with the node's other hosts; None = a thread and a budget of its own.

        budget_bytes: for keys and values, of the host that this one replaces; 0 = as the engine was given, beside what other hosts hold.
        """
        assert (served.beside >= ENDS) == (engines.ends is not None)
        self.served, self.engine, self.block_ms, self.max_positions = served, engines.engine, engines.block_ms, max_positions
        self.unit_engines = engines.source
        self.runner = Runner(
            engines.engine, max_positions=max_positions, token_bytes=kv_bytes_per_token, ends=engines.ends,
            make_part=engines.make_part, device=device,
        )  # fmt: skip
        self.budget_bytes = budget_bytes
        """The device's budget for keys and values when this host started."""
        self._kv_bytes_per_token = max(1, kv_bytes_per_token)
        self._limits, self._clock = limits or HopLimits(), clock
        self._hops: Hops | None = None
        self._endings: list[Callable[[], Awaitable[None]]] = []

    async def start(self, pool: ChannelPool, gate: Gate | None = None) -> None:
        """Begin to serve; `pool` dials the hops below. gate: for which clients; None = for all."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.runner.start(self.budget_bytes)
        self.budget_bytes = self.runner.device.memory.limit_bytes
        self._hops = Hops(
            self.served, Links(pool, Dials(max_in_all=self._limits.max_dials)), self._sequences, self._limits, gate, self._clock
        )
        self._hops.start()

    def drain(self) -> None:
        """Refuse new sessions; open ones continue."""
        if self._hops is not None:
            self._hops.is_draining = True

    def pause(self, is_paused: bool) -> None:
        """Refuse new sessions, or take them again; open ones continue. It has started."""
        self.hops.is_paused = is_paused

    def before_end(self, ending: Callable[[], Awaitable[None]]) -> None:
        """Await `ending()` once, in `stop`, while the tensors of `unit_engines` are still as they are."""
        self._endings.append(ending)

    async def stop(self) -> None:
        """Refuse new sessions, finish the steps that run, free all memory. Clients continue at a replica."""
        self.drain()
        if self._hops is not None:
            await self._hops.stop()
        await self.runner.stop()
        while self._endings:
            await self._endings.pop()()
        if self.unit_engines is not None:
            self.unit_engines.readings.close()

    @property
    def is_draining(self) -> bool:
        """Whether new sessions are refused because this span is about to be given up."""
        return self._hops is not None and self._hops.is_draining

    @property
    def is_paused(self) -> bool:
        """Whether new sessions are refused because an operator said so."""
        return self._hops is not None and self._hops.is_paused

    def load(self) -> Load:
        """Free tokens, waiting steps and speed, for the node's record in the directory."""
        free = max(0, self.runner.device.memory.free_bytes) // self._kv_bytes_per_token
        queue, step_ms = len(self.runner.queue.waiting), self.runner.step_ms
        return Load(free_tokens=free, queue=queue, step_ms=step_ms, block_ms=self.block_ms)

    @property
    def num_sessions(self) -> int:
        """Open sessions."""
        return 0 if self._hops is None else len(self._hops)

    @property
    def num_waiting(self) -> int:
        """Steps that wait for the device."""
        return len(self.runner.queue.waiting) if self.runner.is_running else 0

    @property
    def num_kept(self) -> int:
        """Ended sessions that are kept for forks."""
        return 0 if self._hops is None else len(self._hops.kept)

    @property
    def hops(self) -> Hops:
        """The sessions of this span. DrainingError before `start`."""
        if self._hops is None:
            raise DrainingError("this peer is still starting: try another one, or again in a moment")
        return self._hops

    def _sequences(self, grant: Grant, blocks: Span) -> SessionSequences:
        part = None if blocks == self.served.span else blocks
        return SessionSequences(self.runner, grant.session, grant.client, len(grant.route), part)
