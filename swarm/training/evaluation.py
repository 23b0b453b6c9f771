"""The loss on the weights in training, through a run's stages.

Micro-batches go through the stages as in training, several at once, with forwards only: nothing is added, nothing is kept. All of them see
one version; if the run steps meanwhile, the evaluation ends, since a mean over two versions says nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass

from protocols.errors import NoRouteError, SwarmError, VersionMismatchError
from protocols.ids import PeerId
from protocols.runs import RunSpec
from protocols.training import Pass
from swarm.training.chain import PassError, train
from swarm.training.members import Members, Stage
from swarm.training.pipeline import Drawn, hidden_codec
from swarm.training.route_choice import Leg, choose

log = logging.getLogger(__name__)

TRIES = 4
"""Routes that a micro-batch is sent by, before the evaluation ends with its error."""

AGAIN_S = 0.5
"""Seconds until the stages are asked again if they do not cover the model."""

PASS_S = 60.0
"""Seconds that one micro-batch may take."""


@dataclass(slots=True, kw_only=True)
class Evaluated:
    """Sums over the micro-batches that came back."""

    loss_sum: float = 0.0
    """Nats over all target tokens."""
    num_targets: int = 0
    num_bytes: int = 0
    """UTF-8 bytes that the targets stand for."""
    num_passes: int = 0
    is_whole: bool = False
    """All micro-batches came back in time."""


class Evaluation:
    """Evaluates one run. All methods belong to one event loop."""

    def __init__(self, members: Members, spec: RunSpec, rng: random.Random) -> None:
        self._members, self._spec, self._rng = members, spec, rng

    async def loss(self, version: int, source: Iterator[tuple[Drawn, int]], limit_s: float) -> Evaluated:
        """Over these micro-batches, each with the bytes of its targets; after `limit_s` over those that came back by then.

        VersionMismatchError: a stage has stepped. NoRouteError, or the error of the last try: a micro-batch cannot be computed.
        """
        found, lock = Evaluated(), asyncio.Lock()

        async def work() -> None:
            while True:
                async with lock:  # an iterator gives one at a time
                    item = await asyncio.to_thread(next, source, None)
                if item is None:
                    return
                drawn, num_bytes = item
                loss_sum = await self._carry(version, drawn) if drawn.num_targets else 0.0
                found.loss_sum += loss_sum  # not in one line: `+=` would read the sum before it waits
                found.num_targets += drawn.num_targets
                found.num_bytes += num_bytes
                found.num_passes += 1

        tasks = [asyncio.create_task(work(), name="evaluation") for _ in range(max(2, len(self._members.stages) + 1))]
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*tasks)
            found.is_whole = True
        except TimeoutError:
            log.info("evaluation of version %d: %d micro-batches came back in %.0f s", version, found.num_passes, limit_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found

    async def _carry(self, version: int, drawn: Drawn) -> float:
        """The loss sum of one micro-batch."""
        error: SwarmError = NoRouteError(f"the stages at version {version} do not cover the model")
        for number in range(TRIES):
            if number:
                await self._members.look()
            stages = {stage.peer: stage for stage in self._members.stages if stage.takes(version)}
            if any(unit.version > version for stage in self._members.stages for unit in stage.units.values()):
                raise VersionMismatchError(f"the run has stepped beyond version {version}")
            legs = choose([stage.load(0) for stage in stages.values()], self._members.num_blocks, self._rng)
            if legs is None:
                await asyncio.sleep(AGAIN_S)
                continue
            try:
                result = await train(self._members.pool, self._pass(version, drawn, legs, stages))
            except PassError as failure:
                error = failure
                await self._members.ask_again(failure.peer)
            else:
                return result.loss_sum
        raise error

    def _pass(self, version: int, drawn: Drawn, legs: tuple[Leg, ...], stages: dict[PeerId, Stage]) -> Pass:
        return Pass(
            run=self._members.run, version=version, index=None,
            route=tuple(stages[leg.peer].hop(leg.span) for leg in legs),
            payload=drawn.ids, labels=drawn.labels, positions=drawn.positions, num_targets=drawn.num_targets,
            codec=hidden_codec(self._spec), budget_ms=round(1_000 * PASS_S),
        )  # fmt: skip
