"""Chooses the frozen stage for a client's pass, by weights and blocks."""

from __future__ import annotations

from collections.abc import Callable

from node.device.thread import Device
from node.device.training_time import Priority
from node.gradients.frozen_stage import FrozenStage
from node.serving.host import Host
from protocols.errors import BadRequestError, DrainingError, ModelMismatchError, SpanNotServedError
from protocols.training import Pass
from protocols.units import Blocks, is_part
from protocols.weights_id import Weights, difference, short

GRAPH_SHARE = 0.25
"""Part of the device's free memory that the graphs of clients' passes may take."""

MIN_GRAPH_BYTES, MAX_GRAPH_BYTES = 64 << 20, 4 << 30
"""Whatever is free."""


def graph_bytes(free_bytes: int) -> int:
    """What graphs may take on a device with so much free memory."""
    return min(MAX_GRAPH_BYTES, max(MIN_GRAPH_BYTES, int(GRAPH_SHARE * free_bytes)))


class FrozenStages:
    """The stages of one node's hosts, each made for the first pass that needs it. All methods belong to one event loop."""

    def __init__(self, host_of: Callable[[Weights, Blocks], Host], device: Device, free_bytes: Callable[[], int]) -> None:
        """host_of: as `Dispatcher.host_of`. free_bytes: of the device's memory."""
        self._host_of, self._device, self._free_bytes = host_of, device, free_bytes
        self._stages: dict[Host, FrozenStage] = {}

    def stage_of(self, sent: Pass) -> FrozenStage:
        """What `TrainingServicer` asks for. The same rules as for a session: exactly these weights, blocks of one host, one precision.

        ModelMismatchError, SpanNotServedError, BadRequestError, UnauthenticatedError (the client, or its grant) or DrainingError says
        which one is broken.
        """
        assert sent.weights is not None, "of a client's pass"
        host = self._host_of(sent.weights, sent.here.unit)
        _check(sent, host)
        if host not in self._stages:
            self._stages[host] = self._make(host)
        return self._stages[host]

    def _make(self, host: Host) -> FrozenStage:
        assert host.unit_engines is not None
        served = host.served
        stage = FrozenStage(
            host.unit_engines.readings, served.num_blocks, limit_bytes=graph_bytes(self._free_bytes()),
            max_positions=host.max_positions,
        )  # fmt: skip

        async def close() -> None:
            del self._stages[host]
            await self._device.run(stage.close, Priority.UPDATE)

        host.before_end(close)
        return stage


def _check(sent: Pass, host: Host) -> None:
    assert sent.weights is not None
    served, unit = host.served, sent.here.unit
    if what := difference(served.weights, sent.weights):
        raise ModelMismatchError(
            f"this peer serves {short(served.weights)}, the pass is for {short(sent.weights)}: the two hold different weights ({what})"
        )
    if not is_part(unit, served.blocks) or host.unit_engines is None:
        raise SpanNotServedError(f"this peer serves {served.blocks}, the route wants {unit}: look the directory up again")
    if sent.payload.dtype not in ("int32", served.dtype):
        raise BadRequestError(
            f"this peer computes in {served.dtype}, the pass in {sent.payload.dtype}: a route uses one precision"
        )
    host.hops.check_pass(sent.grant, sent.hop)
    if host.is_draining:
        raise DrainingError("this peer is about to give these blocks up: try a replica")
