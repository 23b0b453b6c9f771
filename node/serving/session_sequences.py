"""One session's sequences at this node: what a hop computes with.

Only the device's thread touches the sequences. If the session's blocks are a part of the host's, it uses that part's engine.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

from torch import Tensor

from node.device.pending import Pending
from node.device.work import Clear, Fork, HeldSequences, Keep, Step
from node.serving.runner import Runner
from protocols.errors import OverloadedError
from protocols.ids import PeerId, SessionId, Span
from protocols.inference import PASS_ON, Op, StepSpec
from swarm.inference.hop.compute import Output, SessionCompute


class SessionSequences:
    """`step` and `fork`, then `clear`: each waits until the device has run it."""

    def __init__(self, runner: Runner, session: SessionId, client: PeerId, num_hops: int = 1, part: Span | None = None) -> None:
        """client: is charged for time and memory. num_hops: of the session's route. part: its blocks; None = all of the host's."""
        self._runner, self.held = runner, HeldSequences(session, client, num_hops=num_hops)
        self.hidden_size, self.dtype = runner.engine.hidden_size, runner.engine.dtype
        self._pending: Pending | None = None
        self._part = part
        self._may_hold = False
        self.ends = None if runner.ends is None else runner.ends.shape

    async def step(
        self,
        ops: Sequence[Op],
        counts: Sequence[int],
        values: Tensor,
        positions: Tensor | None,
        spec: StepSpec = PASS_ON,
        expires_s: float = math.inf,
    ) -> Output:
        """Run `ops`, then the tokens of all sequences, [T, …] as `spec` says, through the blocks. Returns what `spec` asks for.

        If the caller is cancelled, nothing more of the step is run; `clear` must follow.
        """
        await self._take_engine()
        if not self.held.num_tokens and self._part is None:
            self._runner.admit(self.held.client, sum(counts))
        chunking = self._runner.engines.of(self.held).chunking
        is_whole = chunking == "never" or (chunking == "after_first" and not self.held.num_tokens)
        request = Step(
            session=self.held, ops=ops, counts=counts, values=values, positions=positions, spec=spec, expires_s=expires_s,
            is_whole=is_whole,
        )  # fmt: skip
        self._pending = pending = self._runner.submit(request)
        self._may_hold = True
        try:
            return await self._runner.outcome(pending)
        finally:
            self._pending = None

    async def fork(self, source: SessionCompute, tokens: int = 0) -> None:
        """Begin with copies of the sequences of `source`, a session that runs the same blocks here. tokens: as `Fork.tokens`."""
        assert isinstance(source, SessionSequences)
        await self._take_engine()
        self._may_hold = True
        await self._runner.outcome(self._runner.submit(Fork(session=self.held, source=source.held, tokens=tokens)))

    async def keep(self) -> None:
        """The session has ended: its sequences stay for forks while memory is free, until `clear`.

        OverloadedError for those of a part: few parts have an engine at a time, and each that is kept would hold one.
        """
        if self._part is not None:
            raise OverloadedError(f"blocks {self._part} are a part of those of this peer, and only sequences of all are kept")
        await self._runner.outcome(self._runner.submit(Keep(session=self.held)))

    @property
    def holds_tokens(self) -> bool:
        """False also if the sequences were kept, and have been freed for other sessions."""
        return self.held.num_tokens > 0

    async def _take_engine(self) -> None:
        if self._part is not None and self.held.engine is None:
            self.held.engine = await self._runner.engines.take(self._part, self.held.client)
            self._may_hold = True

    def abandon(self) -> None:
        """End a step that runs or waits: the rest of it is not run, and its `step` raises PeerUnreachableError. `clear` must follow."""
        if self._pending is not None:
            self._runner.abandon(self._pending)

    async def clear(self) -> None:
        """Close all sequences, after the session's last step has ended. Does nothing once the host has left its device."""
        if not self._may_hold:
            return
        with contextlib.suppress(OverloadedError):  # the host is leaving, and the engine with it
            if self._runner.is_running:
                await self._runner.outcome(self._runner.submit(Clear(session=self.held)))
        self._may_hold = False
        if self._part is not None and self.held.engine is not None:
            self.held.engine = None
            self._runner.engines.give_back(self._part, self.held.client)
