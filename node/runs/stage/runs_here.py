"""The training runs at one node: their handlers, by run.

Made before the peer listens; `connect` once it does. Until then, and for runs that are not here, calls are refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from node.training.run_units import RunUnits
from node.training.servicer import TrainingServicer
from node.training.trained_stage import TrainedStage
from protocols import services
from protocols.errors import DrainingError, ModelNotFoundError
from protocols.held import Hold, Holding
from protocols.ids import ModelId, PeerId
from protocols.kept import Kept, Restore, Restored
from protocols.run_status import Publish, Published
from protocols.units import Unit
from swarm.averaging.averager import Averager
from swarm.averaging.replica import Replica
from swarm.peer.peer import Peer
from swarm.rpc.call import Call, Handler, Handlers
from swarm.training.state_server import StateServer, TakeState

OnPublish = Callable[[Publish], Awaitable[int]]
"""Serves a version, and returns the newest that is served, or is about to be."""

OnHold = Callable[[Hold, PeerId], Awaitable[int]]
"""Holds a version in memory, as this peer asked, and returns it."""

OnRestore = Callable[[Kept, PeerId], Awaitable[int]]
"""Begins to take a checkpoint, as this peer asked, and returns its version."""

_AVERAGING = (services.CLOSE, services.CARD, services.PREPARE, services.SLICE, services.DECIDE, services.DECISION, services.APPLY)


class RunsHere:
    """All methods belong to one event loop."""

    def __init__(
        self,
        servicer: TrainingServicer,
        upload_turn: Callable[[int], Awaitable[None]],
        on_sent: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """servicer: of this node; its handlers are registered beside these. upload_turn: waits until this node's upload rate allows so
        many bytes more. on_sent: told what averaging has sent, which does not wait."""
        self.servicer, self.states = servicer, StateServer(upload_turn)
        self._on_sent = on_sent
        self._averager: Averager | None = None
        self._replicas: dict[ModelId, RunUnits] = {}
        self._publish: dict[ModelId, OnPublish] = {}
        self._restore: dict[ModelId, OnRestore] = {}
        self._hold: dict[ModelId, OnHold] = {}

    def connect(self, peer: Peer) -> None:
        """The peer listens: serve its calls."""
        self._averager = Averager(peer.identity, peer.pool, self._replica, self._on_sent)

    def open(
        self,
        units: RunUnits,
        trained: TrainedStage,
        take_state: TakeState,
        on_publish: OnPublish,
        on_restore: OnRestore,
        on_hold: OnHold,
    ) -> None:
        """From now on, this node's part of the run answers."""
        self._replicas[units.run], self._publish[units.run], self._restore[units.run] = units, on_publish, on_restore
        self._hold[units.run] = on_hold
        self.states.add(units.run, take_state)
        trained.agreed = lambda unit: self._agreed(units.run, unit)
        self.servicer.open(trained)

    def close(self, run: ModelId) -> None:
        """No new call reaches the run's units; those in hand go on."""
        self.servicer.close(run)
        self.states.remove(run)
        self._replicas.pop(run, None)
        self._publish.pop(run, None)
        self._restore.pop(run, None)
        self._hold.pop(run, None)

    def _agreed(self, run: ModelId, unit: Unit) -> bytes:
        found = self._averager.agreement(run, unit) if self._averager is not None else None
        return found.group_id if found is not None else b""

    def forget_agreements(self, run: ModelId, units: Iterable[Unit]) -> None:
        """The state of these units was fetched from another peer: what they had agreed on is in it."""
        if self._averager is not None:
            self._averager.forget(run, units)

    async def stop(self) -> None:
        """Cancel what averaging has under way."""
        if self._averager is not None:
            await self._averager.stop()

    def handlers(self) -> Handlers:
        """By method name, for the peer's server."""
        averaging = {method.name: self._later(method.name) for method in _AVERAGING}
        own = {services.PUBLISH: self._on_publish, services.RESTORE: self._on_restore, services.HOLD: self._on_hold}
        return {**self.states.handlers(), **averaging, **{method.name: handler for method, handler in own.items()}}

    def _later(self, name: str) -> Handler:
        """The averager's handler of this name, which there is from `connect` on."""

        async def handle(request: object, call: Call) -> object:
            if self._averager is None:
                raise DrainingError("this peer is still starting: try again in a moment")
            handler: Callable[[object, Call], Awaitable[object]] = self._averager.handlers()[name]  # type: ignore[assignment]
            return await handler(request, call)

        return handle  # type: ignore[return-value]

    async def _on_publish(self, request: bytes, call: Call) -> bytes:
        publish = Publish.parse(request)
        self._check_here(publish.run)
        return Published(version=await self._publish[publish.run](publish)).encode()

    async def _on_restore(self, request: bytes, call: Call) -> bytes:
        restore = Restore.parse(request)
        self._check_here(restore.run)
        return Restored(version=await self._restore[restore.run](restore.kept, call.peer)).encode()

    async def _on_hold(self, request: bytes, call: Call) -> bytes:
        hold = Hold.parse(request)
        self._check_here(hold.run)
        return Holding(version=await self._hold[hold.run](hold, call.peer)).encode()

    def _replica(self, run: ModelId) -> Replica:
        self._check_here(run)
        return self._replicas[run]

    def _check_here(self, run: ModelId) -> None:
        if run not in self._replicas:
            raise ModelNotFoundError(f"run {run.name} ({run.digest[:12]}) is not trained here: ask another peer")
