"""The gRPC methods of a stage: `train` and `run_status`.

`train` is G4 of a gradient's path: check, bound, hand over; nothing is computed here. What a pass does at its hop is in `hop_pass.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import torch

from node.device.thread import Device
from node.training.hop_pass import HopPass
from node.training.pass_compute import PassCompute
from node.training.pass_limits import PassCounts, PassLimits
from node.training.trained_stage import ComputesPasses, TrainedStage
from protocols import services, training
from protocols.errors import (
    BadRequestError,
    DeadlineError,
    DrainingError,
    ModelNotFoundError,
    NotAllowedError,
    OverloadedError,
    SpanNotServedError,
    SwarmError,
)
from protocols.ids import ModelId, PeerId, short_peer
from protocols.run_status import StatusRequest
from protocols.training import Pass, Result
from swarm import trace
from swarm.rpc.call import Call, Handlers
from swarm.rpc.first_message import first_message
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream
from swarm.training.chain import PassError

log = logging.getLogger(__name__)


def _no_frozen(sent: Pass) -> ComputesPasses:
    raise SpanNotServedError(f"{sent.here.unit} of {sent.run.name} can be differentiated at another peer, not here")


class TrainingServicer:
    """Serves the passes of all runs of one node. All methods belong to one event loop."""

    def __init__(
        self,
        device: Device,
        *,
        frozen: Callable[[Pass], ComputesPasses] = _no_frozen,
        may_train: Callable[[PeerId], bool] = lambda peer: True,
        limits: PassLimits | None = None,
        on_sent: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """frozen: the stage for a client's autograd pass; it raises a SwarmError if there is none. may_train: which peers may begin a
        pass of training here; the hops above are held to its route instead. on_sent: told the bytes of values that a pass has sent."""
        self._on_sent = on_sent
        self._device, self._frozen, self._may_train = device, frozen, may_train
        self._counts = PassCounts(limits or PassLimits())
        self._runs: dict[ModelId, TrainedStage] = {}
        self._peer: PeerId | None = None
        self._pool: ChannelPool | None = None
        self.is_draining = False
        """New passes are refused; those in hand go on."""

    def connect(self, peer: PeerId, pool: ChannelPool) -> None:
        """Serve as `peer`, and dial the next hops with `pool`. Before it, every pass is refused."""
        self._peer, self._pool = peer, pool

    def open(self, trained: TrainedStage) -> None:
        """Take passes of this run, instead of what was opened for it before."""
        self._runs[trained.run] = trained

    def close(self, run: ModelId) -> None:
        """Take no more passes of this run; those in hand go on."""
        self._runs.pop(run, None)

    @property
    def num_passes(self) -> int:
        """Passes in hand."""
        return len(self._counts)

    def handlers(self) -> Handlers:
        return {services.TRAIN.name: self.train, services.RUN_STATUS.name: self.run_status}

    async def run_status(self, request: bytes, call: Call) -> bytes:
        """How far our units of a run are. ModelNotFoundError: none are trained here."""
        return self._trained(StatusRequest.parse(request).run).status().encode()

    async def train(self, stream: Stream, call: Call) -> None:
        """Carry one pass: its result, or PassFailed with the hop at fault, is the answer.

        Nothing was added here if our own hop is at fault. If the caller goes away, so does the pass: here and at the hops below.
        """
        sent = await first_message(stream, Pass, _received)
        try:
            answer = (await self._carried(stream, call, sent)).encode()
        except PassError as error:
            answer = error.message.encode()
        except SwarmError as error:
            log.info("a pass of %s from %s failed here: %s", sent.run.name, short_peer(call.peer), error)
            answer = PassError(sent.hop, sent.here.peer, error).message.encode()
        await stream.send(answer)

    async def _carried(self, stream: Stream, call: Call, sent: Pass) -> Result:
        if self._peer is None or self._pool is None or self.is_draining:
            raise DrainingError("this peer is starting or leaving: try a replica")
        self._check_place(sent, call)
        trained = self._trained(sent.run) if sent.is_of_run else None
        if trained is not None and trained.is_paused:
            raise DrainingError("this stage is paused by its owner: ask a replica")
        stage = trained.stage if trained is not None else self._frozen(sent)
        if trained is not None:
            trained.check_size(sent.index, sent.payload.shape)
        limit_s = sent.budget_ms / 1e3 if sent.is_of_run else min(sent.budget_ms / 1e3, self._counts.limits.client_s)
        with self._counts.entered(call.peer, is_training=sent.is_of_run, is_first_hop=not sent.hop):
            compute, ends_at_s = PassCompute(sent, stage, trained), self._device.clock.now_s() + limit_s
            own = HopPass(self._peer, sent, compute, self._device, self._pool, ends_at_s)
            if trained is None:
                return await _within(own, stream, limit_s)
            with trained.in_hand():
                result = await _within(own, stream, limit_s)
            if sent.is_training:
                trained.pace.add(own.forward_ms, own.backward_ms, len(sent.here.span))
            if compute.added:
                trained.contribution.add(math.prod(sent.payload.shape[:2]))
            self._on_sent(result.receipts[0].num_bytes)
            return result

    def _trained(self, run: ModelId) -> TrainedStage:
        if run not in self._runs:
            raise ModelNotFoundError(f"run {run.name} ({run.digest[:12]}) is not trained here: ask another peer")
        return self._runs[run]

    def _check_place(self, sent: Pass, call: Call) -> None:
        """Is it our turn, and is the caller the hop above, or a peer that may begin?"""
        if sent.here.peer != self._peer:
            raise BadRequestError(f"hop {sent.hop} of the route is peer {short_peer(sent.here.peer)}, not this one")
        if sent.hop and call.peer != (above := sent.route[sent.hop - 1].peer):
            raise NotAllowedError(f"hop {sent.hop} is called by peer {short_peer(above)}, not by {short_peer(call.peer)}")
        if sent.grant is not None and not sent.hop and call.peer != sent.grant.client:
            raise NotAllowedError(f"the grant is of client {short_peer(sent.grant.client)}, not of {short_peer(call.peer)}")
        if sent.is_of_run and not sent.hop and not self._may_train(call.peer):
            raise NotAllowedError(f"peer {short_peer(call.peer)} may not train with this stage")
        if sent.is_of_run and (sent.payload.dtype == "int32") is not (sent.hop == 0):
            raise BadRequestError("on weights in training the first hop gets ids, and the others hidden states")


def _received(data: bytes) -> training.Message:
    message = training.parse(data)
    if isinstance(message, Pass):
        trace.mark_gradient("received", message.version, message.index, len(data))
    return message


async def _within(own: HopPass, stream: Stream, limit_s: float) -> Result:
    timeout = asyncio.timeout(limit_s)
    try:
        async with timeout:
            return await own.run(stream)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineError(f"the pass was not done within {limit_s:.1f} s: send it another way, or with more time") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise OverloadedError("no memory for this pass: send smaller micro-batches, or ask a replica") from None
