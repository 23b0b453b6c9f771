"""Carries a version's micro-batches through the stages, several at once.

These are steps G2 and G3 of a gradient's path. A micro-batch is one nested call (`chain.py`): it comes back with the loss and a receipt of
every hop. If a hop fails, the micro-batch is sent again: the stages that hold it already are preferred, and if another stage holds it, the
new one is told not to add it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from protocols.errors import NoRouteError, SwarmError
from protocols.ids import PeerId, short_peer
from protocols.receipts import Receipt
from protocols.runs import RunSpec
from protocols.tensors import WireTensor
from protocols.training import Pass
from swarm import trace
from swarm.clock import Clock
from swarm.rpc.pool import ChannelPool
from swarm.training.chain import PassError, train
from swarm.training.members import Members, Stage, parts_on
from swarm.training.progress import Progress
from swarm.training.route_choice import Leg, choose, uncovered

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
"""Seconds until the stages are asked again if they do not cover the model."""

FIRST_PASS_S = 60.0
"""Seconds that a micro-batch may take before any has been measured."""

LATE_FACTOR = 6.0
"""A micro-batch is late after so many times the mean time of the others, and is sent another way."""

LEAST_LATE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One micro-batch as it travels."""

    ids: WireTensor
    """int32 [B, T]."""
    labels: WireTensor
    """int32 [B, T]: the target of each position, or -100."""
    positions: WireTensor | None
    num_targets: int

    @property
    def num_bytes(self) -> int:
        return self.ids.num_bytes + self.labels.num_bytes + (0 if self.positions is None else self.positions.num_bytes)


class Source(Protocol):
    """Where micro-batches come from: a pure function of version and index, the same for every trainer."""

    def draw(self, version: int, index: int) -> Drawn: ...


@dataclass(slots=True, kw_only=True)
class Totals:
    """What the micro-batches of one version came to, at this trainer."""

    loss_sum: float = 0.0
    num_targets: int = 0
    num_passes: int = 0
    num_failed: int = 0
    """Passes that failed, each of which was sent again."""
    num_redone: int = 0
    """Micro-batches that ran again, because a stage that held them died."""
    num_bytes: int = 0
    """That the hops sent to each other: hidden states and gradients."""
    receipts: list[Receipt] = field(default_factory=list)


class Pipeline:
    """Sends micro-batches. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        members: Members,
        pool: ChannelPool,
        spec: RunSpec,
        num_blocks: int,
        source: Source,
        clock: Clock,
        rng: random.Random,
        on_wait: Callable[[str], None] = lambda text: None,
    ) -> None:
        """on_wait: told what is waited for if the stages do not cover the model."""
        self._members, self._pool, self._spec, self._num_blocks = members, pool, spec, num_blocks
        self._source, self._clock, self._rng, self._on_wait = source, clock, rng, on_wait
        self._sent: Counter[PeerId] = Counter()
        self._pass_s = 0.0
        """Mean seconds of a pass, newer ones weighing more; 0 = none measured."""

    @property
    def window(self) -> int:
        """Micro-batches under way at once: one at each stage, and one more, so that no stage waits for this trainer."""
        return max(2, len(self._members.stages) + 1)

    async def compute(self, version: int, indices: Sequence[int], progress: Progress, totals: Totals) -> None:
        """Return once every one of these indices is in the sums of all parts, by the receipts. It never gives up: cancel it."""
        waiting = list(reversed(indices))

        async def work() -> None:
            while waiting:
                await self._carry(version, waiting.pop(), progress, totals)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(self.window, len(indices))):
                tasks.create_task(work())

    async def _carry(self, version: int, index: int, progress: Progress, totals: Totals) -> None:
        """One micro-batch, again and again until it has come back."""
        trace.mark_gradient("taken", version, index)
        drawn = await asyncio.to_thread(self._source.draw, version, index)
        trace.mark_gradient("drawn", version, index, drawn.num_bytes)
        while True:
            legs = await self._route(version, index, progress)
            trace.mark_gradient("chosen", version, index)
            try:
                await self._send(version, index, drawn, legs, progress, totals)
                return
            except PassError as error:
                totals.num_failed += 1
                await self._after(error, legs, progress)

    async def _route(self, version: int, index: int, progress: Progress) -> tuple[Leg, ...]:
        """Through stages of this version; waits while they do not cover the model."""
        is_first = True
        while True:
            stages = [stage for stage in self._members.stages if stage.is_at(version)]
            loads = [stage.load(self._sent[stage.peer]) for stage in stages]
            legs = choose(loads, self._num_blocks, self._rng, progress.holders_of(index))
            if legs is not None:
                return legs
            if not is_first:
                self._on_wait(self._missing(stages, loads, version))
                await asyncio.sleep(LOOK_AGAIN_S)
            is_first = False
            await self._members.look()

    def _missing(self, stages: Sequence[Stage], loads: Sequence[object], version: int) -> str:
        blocks = uncovered([stage.load(0) for stage in stages], self._num_blocks)
        return str(
            NoRouteError(
                f"no stage of {self._spec.name} that is at version {version} hosts block {blocks[0] if blocks else 0} "
                f"({len(blocks)} of {self._num_blocks} blocks are missing); waiting for one to join"
            )
        )

    async def _send(
        self, version: int, index: int, drawn: Drawn, legs: Sequence[Leg], progress: Progress, totals: Totals
    ) -> None:
        message = self._pass(version, index, drawn, legs, progress)
        began_s = self._clock.now_s()
        self._sent.update(leg.peer for leg in legs)
        try:
            result = await train(self._pool, message)
        finally:
            self._sent.subtract(leg.peer for leg in legs)
        took_s = self._clock.now_s() - began_s
        self._pass_s = took_s if not self._pass_s else 0.8 * self._pass_s + 0.2 * took_s
        for receipt in result.receipts:
            progress.add(index, receipt.peer, (*receipt.added, *receipt.held))
            totals.num_bytes += receipt.num_bytes
        trace.mark_gradient("counted", version, index)
        totals.loss_sum += result.loss_sum
        totals.num_targets += drawn.num_targets
        totals.num_passes += 1
        totals.receipts += result.receipts

    def _pass(self, version: int, index: int, drawn: Drawn, legs: Sequence[Leg], progress: Progress) -> Pass:
        stages = {stage.peer: stage for stage in self._members.stages}
        late_s = max(LEAST_LATE_S, LATE_FACTOR * self._pass_s) if self._pass_s else FIRST_PASS_S
        return Pass(
            run=self._members.run, version=version, index=index,
            route=tuple(stages[leg.peer].hop(leg.span) for leg in legs),
            skip=progress.skipped(index, parts_on(legs)),
            payload=drawn.ids, labels=drawn.labels, positions=drawn.positions, num_targets=drawn.num_targets,
            codec=hidden_codec(self._spec), budget_ms=round(1_000 * late_s),
        )  # fmt: skip

    async def _after(self, error: PassError, legs: Sequence[Leg], progress: Progress) -> None:
        """Ask the stage that failed how far it is: one that does not answer is dead, and so are its sums."""
        peer = legs[error.hop].peer if error.hop < len(legs) else legs[-1].peer
        log.info("a micro-batch failed at stage %s: %s", short_peer(peer), error)
        if await self._members.ask_again(peer) is None:
            progress.lose(peer)


def hidden_codec(spec: RunSpec) -> str:
    """How hidden states and gradients of a run travel."""
    return _CODECS[spec.activations]


_CODECS = {"float32": "none", "bfloat16": "bfloat16"}
"""How the spec's activations travel, as `tensors.CODECS` names it."""

__all__ = ["Drawn", "Pipeline", "Source", "SwarmError", "Totals"]
