"""One pass at one hop: our forward, the hops below, our backward.

This is G5 of a gradient's path. The call of the next hop is nested in ours: its gradient comes back as its answer. The last hop computes
the loss and runs its backward in one piece, so the device does nothing else in between. If this task is cancelled (its caller has gone),
the call below is cancelled and the flight's memory is free again. An evaluation has no backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from node.device.thread import Device
from node.device.training_time import Priority
from node.training.pass_compute import PassCompute
from protocols import training
from protocols.errors import BadRequestError
from protocols.ids import PeerId
from protocols.receipts import Receipt
from protocols.tensors import WireTensor
from protocols.training import Gradient, Output, Pass, Result
from swarm import measured, trace
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream
from swarm.training.chain import PassCall

MARGIN_SHARE, MAX_MARGIN_S = 0.05, 0.1
"""What a hop keeps of its time for itself, so that the hop that is late is named by the hop above it, before all give up."""

T = TypeVar("T")


class HopPass:
    """Carries one pass. All methods belong to one event loop."""

    def __init__(
        self, peer: PeerId, sent: Pass, compute: PassCompute, device: Device, pool: ChannelPool, ends_at_s: float
    ) -> None:
        """ends_at_s: on the device's clock, until when the caller waits."""
        self._peer, self._sent, self._compute, self._device, self._pool = peer, sent, compute, device, pool
        self._ends_at_s = ends_at_s
        self.queue_ms = self.forward_ms = self.backward_ms = self.wait_ms = 0.0
        """As a receipt says."""
        self._num_bytes = 0

    async def run(self, stream: Stream) -> Result:
        """The answer for the hop above. PassError: a hop below failed; any other error is ours."""
        try:
            if not self._sent.is_last:
                return await self._with_hops_below(stream)
            if self._sent.is_evaluation:
                await self._on_device(self._loss, Priority.FORWARD)
                gradient = None
            elif self._sent.want == "loss":
                gradient = await self._on_device(self._loss_and_backward, Priority.BACKWARD)
            else:
                gradient = await self._as_last_of_a_client(stream)
            return self._result(gradient, self._compute.loss_sum)
        finally:
            self._compute.drop()

    def _loss(self) -> None:
        self._timed("forward_ms", self._compute.forward)

    def _loss_and_backward(self) -> WireTensor | None:
        self._timed("forward_ms", self._compute.forward)
        return self._timed("backward_ms", lambda: self._compute.backward(None))

    async def _as_last_of_a_client(self, stream: Stream) -> WireTensor | None:
        """The output goes up, its gradient comes down."""
        gradient = await self._exchanged(stream, Output(hidden=await self._forward()))
        return await self._backward(gradient.gradient)

    async def _with_hops_below(self, stream: Stream) -> Result:
        output = await self._forward()
        if self._sent.is_evaluation:
            self._compute.drop()
        began_s = self._device.clock.now_s()
        self._num_bytes += output.num_bytes
        async with PassCall(self._pool, self._sent.below(output, self._budget_ms())) as below:
            if self._sent.want == "hidden":
                await below.send(await self._exchanged(stream, await below.output()))
            result = await below.result()
        self.wait_ms = (self._device.clock.now_s() - began_s) * 1e3
        gradient = None if self._sent.is_evaluation else await self._backward(result.gradient)
        return self._result(gradient, result.loss_sum, result.receipts)

    async def _exchanged(self, stream: Stream, output: Output) -> Gradient:
        """Send the output up, and wait for its gradient."""
        await stream.send(output.encode())
        data = await stream.receive()
        message = training.parse(data) if data is not None else None
        if not isinstance(message, Gradient) or message.gradient.shape != output.hidden.shape:
            raise BadRequestError(f"the gradient of {list(output.hidden.shape)} was due, got {type(message).__name__}")
        return message

    def _result(self, gradient: WireTensor | None, loss_sum: float, below: tuple[Receipt, ...] = ()) -> Result:
        if self._sent.is_of_run and not self._sent.is_evaluation:
            measured.gradient("G4", self.queue_ms / 1e3)
            measured.gradient("G5", (self.forward_ms + self.backward_ms) / 1e3)
        own = Receipt(
            peer=self._peer, added=self._compute.added, held=self._compute.held, queue_ms=self.queue_ms,
            forward_ms=self.forward_ms, backward_ms=self.backward_ms, wait_ms=self.wait_ms,
            num_bytes=self._num_bytes + (0 if gradient is None else gradient.num_bytes),
        )  # fmt: skip
        return Result(gradient=gradient, loss_sum=loss_sum, receipts=(own, *below))

    def _budget_ms(self) -> int:
        left_s = self._ends_at_s - self._device.clock.now_s()
        return max(0, int(1e3 * (left_s - min(MAX_MARGIN_S, MARGIN_SHARE * left_s))))

    async def _forward(self) -> WireTensor:
        output = await self._on_device(lambda: self._timed("forward_ms", self._compute.forward), Priority.FORWARD)
        assert output is not None
        return output

    async def _backward(self, gradient: WireTensor | None) -> WireTensor | None:
        def backward() -> WireTensor | None:
            return self._timed("backward_ms", lambda: self._compute.backward(gradient))

        return await self._on_device(backward, Priority.BACKWARD)

    async def _on_device(self, function: Callable[[], T], priority: Priority) -> T:
        """Run it in the device's thread; the time until it begins counts as queueing."""
        clock, asked_s = self._device.clock, self._device.clock.now_s()

        def queued() -> T:
            self.queue_ms += (clock.now_s() - asked_s) * 1e3
            return function()

        return await self._device.run(queued, priority)

    def _timed(self, kind: str, function: Callable[[], T]) -> T:
        clock, began_s = self._device.clock, self._device.clock.now_s()
        self._mark(kind, "begun")
        try:
            return function()
        finally:
            setattr(self, kind, (clock.now_s() - began_s) * 1e3)
            self._mark(kind, "done")

    def _mark(self, kind: str, what: str) -> None:
        trace.mark_gradient(f"{kind.removesuffix('_ms')} {what}", self._sent.version, self._sent.index)
