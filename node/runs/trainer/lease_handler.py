"""Answers the lease requests of a run's other trainers."""

from __future__ import annotations

from protocols import services
from protocols.errors import ModelNotFoundError
from protocols.ids import ModelId
from protocols.leases import LeaseRequest
from swarm.rpc.call import Call, Handlers
from swarm.training.turns import Turns


class LeaseHandler:
    """Answers `lease` of one run, which is opened after the peer listens."""

    def __init__(self) -> None:
        self._run: ModelId | None = None
        self._turns: Turns | None = None

    def open(self, run: ModelId, turns: Turns) -> None:
        """From now on, this run's other trainers are answered."""
        self._run, self._turns = run, turns

    def handlers(self) -> Handlers:
        return {services.LEASE.name: self._on_lease}

    async def _on_lease(self, request: bytes, call: Call) -> bytes:
        run = LeaseRequest.parse(request).run
        if self._turns is None or run != self._run:
            raise ModelNotFoundError(f"run {run.name} ({run.digest[:12]}) has no trainer here: ask another peer")
        return await self._turns.on_lease(request, call)
