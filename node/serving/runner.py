"""One host on its device: start and stop, requests and their outcomes.

`executor.py` executes the requests in the device's thread. Sessions that run a part of the blocks only have an engine of their own
(`part_engines.py`), and share thread and memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from node.device.host_queue import HostQueue
from node.device.pending import Pending
from node.device.thread import Device
from node.device.work import Request
from node.serving.executor import Executor
from node.serving.part_engines import MakePart, PartEngines
from protocols.errors import PeerUnreachableError
from protocols.ids import PeerId
from swarm.inference.hop.compute import Output

if TYPE_CHECKING:
    from node.engines.ends import Ends
    from node.engines.engine import Engine


class Runner:
    """Runs an engine on a device. `start`, then `submit` and `outcome` from any event loop, then `stop`."""

    def __init__(
        self,
        engine: Engine,
        budget_tokens: int = 1_024,
        max_positions: int | None = None,
        token_bytes: int = 0,
        ends: Ends | None = None,
        make_part: MakePart | None = None,
        device: Device | None = None,
    ) -> None:
        """budget_tokens: new tokens of all sessions in one forward. max_positions: longest sequence; None = no limit.

        token_bytes: what one token of a sequence takes at least; 0 = not known, then `admit` counts it as nothing.
        ends: embedding, norm and head; None = only blocks are hosted. make_part: an engine of some of the blocks.
        device: shared with other hosts; None = its own.
        """
        self.engine, self.ends, self.device = engine, ends, device or Device()
        self.engines = PartEngines(engine, self.device.memory, make_part, self._warm_up_again)
        self._executor = Executor(self.engines, ends, self.device, max_positions)
        self.holdings, self.work = self._executor.holdings, self._executor.work
        self._budget_tokens, self._token_bytes = budget_tokens, token_bytes

    @property
    def is_running(self) -> bool:
        return self._executor.is_attached and not self.queue.ended.is_set()

    @property
    def queue(self) -> HostQueue:
        """The requests that wait here; OverloadedError before `start`."""
        return self._executor.queue

    @property
    def num_forwards(self) -> int:
        return self._executor.forwards.num_forwards

    @property
    def num_steps(self) -> int:
        return self._executor.forwards.num_steps

    @property
    def largest_batch(self) -> int:
        """Most steps that ever shared a forward."""
        return self._executor.forwards.largest_batch

    @property
    def step_ms(self) -> float:
        """Moving average of a forward's milliseconds, through all blocks; 0 before the first."""
        return self._executor.forwards.step_ms

    def start(self, budget_bytes: int = 0) -> None:
        """budget_bytes: as `Memory.enter` has it."""
        self.device.memory.enter(self.engines, self.holdings, self.engine.limit_bytes, budget_bytes)
        self._executor.attach(self._budget_tokens)

    async def stop(self) -> None:
        """Run what waits, then leave the device. A second call changes nothing."""
        if self._executor.is_attached:
            await self.device.detach(self.queue)
            self.device.memory.leave(self.engines)

    def submit(self, request: Request) -> Pending:
        """Queue a request; `outcome` waits for it. OverloadedError if too many wait, before `start`, or if the host leaves."""
        return self.device.submit(self.queue, request)

    async def outcome(self, pending: Pending) -> Output:
        """Raises what was found wrong with the request. If the caller is cancelled, what is left of a step is not run."""
        assert pending.future is not None
        try:
            return await pending.future
        except asyncio.CancelledError:
            if pending.is_step:  # a Clear is done all the same: other sessions need the memory
                self.device.scheduler.cancel(self.queue, pending)
            raise

    def abandon(self, pending: Pending) -> None:
        """Its session is over: what is left of it is not run, and its `outcome` raises at once."""
        self.device.scheduler.cancel(self.queue, pending)
        if pending.future is not None and not pending.future.done():
            pending.future.set_exception(PeerUnreachableError("the session was closed while its step was computed"))

    def admit(self, client: PeerId, num_tokens: int) -> None:
        """CacheFullError if a new session's first step does not fit: at once, before it waits in the queue."""
        now_s = self.device.clock.now_s()
        self.device.memory.judge(client, num_tokens * self._token_bytes, num_tokens, now_s, is_new=True)

    def _warm_up_again(self) -> None:
        self.device.scheduler.warm_up_again(self.queue)
