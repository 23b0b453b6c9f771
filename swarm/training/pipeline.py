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
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocols.errors import (
    DeadlineError,
    LedgerClosedError,
    NonFiniteGradientError,
    NoRouteError,
    OverloadedError,
    SwarmError,
    VersionMismatchError,
)
from protocols.ids import PeerId, short_peer
from protocols.leases import Done
from protocols.runs import RunSpec
from protocols.tensors import WireTensor
from protocols.training import Pass
from protocols.units import Blocks
from swarm import measured, trace
from swarm.clock import Clock
from swarm.training.arrivals import Arrivals
from swarm.training.blame import Blame
from swarm.training.chain import PassError, train
from swarm.training.members import Members, all_parts, parts_on, progress_of
from swarm.training.progress import Progress
from swarm.training.route_choice import Leg, choose, uncovered
from swarm.training.window import Window

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.5
"""Seconds until the stages are asked again if they do not cover the model."""

QUIET_LOOKS = 3
"""Looks for stages before it is said that some are missing."""

FIRST_PASS_S = 60.0
"""Seconds that a micro-batch may take before any has been measured, and the most that it may take at its first try."""

LEAST_LATE_S = 5.0
"""No micro-batch is late before."""

PAUSE_S = 0.025
"""First pause after a refusal that passes; it doubles."""


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


class Pipeline:
    """Sends micro-batches. All methods belong to one event loop."""

    def __init__(
        self,
        *,
        members: Members,
        spec: RunSpec,
        source: Source,
        clock: Clock,
        rng: random.Random,
        on_wait: Callable[[str], None] = lambda text: None,
        on_accused: Callable[[PeerId, SwarmError], None] = lambda peer, cause: None,
    ) -> None:
        """on_wait: told what is waited for: stages that do not cover the model, or one that does not answer. on_accused: as `Blame`."""
        self._members, self._spec = members, spec
        self._source, self._clock, self._rng, self._on_wait = source, clock, rng, on_wait
        self._sent: Counter[PeerId] = Counter()
        self._arrivals, self._blame, self._window = Arrivals(), Blame(clock, on_accused), Window()
        self._version, self._looking = 0, asyncio.Lock()
        self._progress = Progress(spec.num_micro_batches, all_parts(members.num_blocks))

    @property
    def window(self) -> int:
        """Micro-batches that all trainers together should have under way, so that no stage waits for one (`window.py`)."""
        stages = [stage for stage in self._members.stages if not stage.status.is_paused]
        num_hosted = sum(isinstance(unit, Blocks) for stage in stages for unit in stage.units)
        return self._window.size(len(stages), num_hosted / self._members.num_blocks, self._spec.num_micro_batches)

    def begin(self, version: int) -> None:
        """The next micro-batches are of this version."""
        self._version = version
        self._progress = Progress(self._spec.num_micro_batches, all_parts(self._members.num_blocks))
        self._blame.begin()

    async def look(self) -> Progress:
        """Ask all stages what their sums hold of this version."""
        version, stages = self._version, await self._members.look()
        progress = progress_of(stages, version, self._spec.num_micro_batches, self._members.num_blocks)
        if version == self._version:
            self._progress = progress
        return progress

    async def carry(self, index: int) -> Done:
        """One micro-batch, again and again until it is in the sums of all parts, by the receipts. It never gives up: cancel it.

        NonFiniteGradientError if the micro-batch itself is at fault: NaN, infinity or an absurd norm, wherever it is computed.
        """
        version = self._version
        trace.mark_gradient("taken", version, index)
        with measured.timed("G1"):
            drawn = await asyncio.to_thread(self._source.draw, version, index)
        trace.mark_gradient("drawn", version, index, drawn.num_bytes)
        num_late = num_failed = 0
        while True:
            with measured.timed("G2"):
                legs = await self._route(version, index)
            trace.mark_gradient("chosen", version, index)
            try:
                return await self._send(version, index, drawn, legs, num_late)
            except PassError as error:
                num_failed += 1
                num_late += isinstance(error.cause, DeadlineError)
                await self._after(error, version, index, legs, num_failed)

    async def _route(self, version: int, index: int) -> tuple[Leg, ...]:
        """Through stages of this version; waits while they do not cover the model."""
        if (legs := self._choose(version, index)) is not None:
            return legs
        async with self._looking:  # one micro-batch looks for all
            num_looks = 0
            while (legs := self._choose(version, index)) is None:
                if num_looks >= QUIET_LOOKS:
                    self._on_wait(self._missing(version))
                if num_looks:
                    await asyncio.sleep(LOOK_AGAIN_S)
                num_looks += 1
                await self._members.look(is_anew=True)
            return legs

    def _choose(self, version: int, index: int) -> tuple[Leg, ...] | None:
        """None: no route. NonFiniteGradientError as of `carry`."""
        suspects, accused = self._blame.left_out()
        legs = self._way(version, index, suspects)
        if self._blame.is_at_fault(index, has_other_way=legs is not None):
            raise NonFiniteGradientError(
                f"micro-batch {index} of version {version} of {self._spec.name}: {self._blame.last_word(index)}; the run stays at version "
                f"{version}: look at this micro-batch's data, or begin with a smaller learning rate"
            )
        return legs or self._way(version, index, accused)

    def _way(self, version: int, index: int, left_out: Collection[PeerId]) -> tuple[Leg, ...] | None:
        stages = [stage for stage in self._members.stages if stage.takes(version) and stage.peer not in left_out]
        loads = [stage.load(self._sent[stage.peer]) for stage in stages]
        return choose(loads, self._members.num_blocks, self._rng, self._progress.holders_of(index))

    def _missing(self, version: int) -> str:
        left_out = self._blame.left_out()[1]
        stages = [stage for stage in self._members.stages if stage.takes(version) and stage.peer not in left_out]
        blocks = uncovered([stage.load(0) for stage in stages], self._members.num_blocks)
        return str(
            NoRouteError(
                f"no stage of {self._spec.name} takes micro-batches of version {version} for block {blocks[0] if blocks else 0} "
                f"({len(blocks)} of {self._members.num_blocks} blocks are missing); waiting for one: swarm node --run {self._spec.name}"
            )
        )

    async def _send(self, version: int, index: int, drawn: Drawn, legs: Sequence[Leg], num_late: int) -> Done:
        message = self._pass(version, index, drawn, legs, num_late)
        began_s = self._clock.now_s()
        self._sent.update(leg.peer for leg in legs)
        try:
            result = await train(self._members.pool, message)
        finally:
            self._sent.subtract(leg.peer for leg in legs)
        took_s = self._clock.now_s() - began_s
        self._arrivals.add(took_s)
        self._window.add(took_s, result.receipts)
        measured.gradient(
            "G3", max(0.0, took_s - sum([one.queue_ms + one.forward_ms + one.backward_ms for one in result.receipts]) / 1e3)
        )
        if version == self._version:
            for receipt in result.receipts:
                self._progress.add(index, receipt.peer, (*receipt.added, *receipt.held))
        trace.mark_gradient("counted", version, index)
        return Done(
            index=index, loss_sum=result.loss_sum, num_targets=drawn.num_targets,
            num_bytes=sum(receipt.num_bytes for receipt in result.receipts),
        )  # fmt: skip

    def _pass(self, version: int, index: int, drawn: Drawn, legs: Sequence[Leg], num_late: int) -> Pass:
        stages = {stage.peer: stage for stage in self._members.stages}
        limit_s = self._arrivals.limit_s()
        late_s = FIRST_PASS_S if limit_s is None else min(FIRST_PASS_S, max(LEAST_LATE_S, limit_s)) * 2 ** min(num_late, 4)
        return Pass(
            run=self._members.run, version=version, index=index,
            route=tuple(stages[leg.peer].hop(leg.span) for leg in legs),
            skip=self._progress.skipped(index, parts_on(legs)),
            payload=drawn.ids, labels=drawn.labels, positions=drawn.positions, num_targets=drawn.num_targets,
            codec=hidden_codec(self._spec), budget_ms=round(1_000 * late_s),
        )  # fmt: skip

    async def _after(self, error: PassError, version: int, index: int, legs: Sequence[Leg], num_failed: int) -> None:
        """Ask the stages of the route what they hold: one that does not answer is dead, and so are its sums."""
        peers = [leg.peer for leg in legs]
        hop = min(error.hop, len(peers) - 1)
        self._blame.note(index, hop, peers, error.cause)
        log.info("micro-batch %d of version %d failed at stage %s: %s", index, version, short_peer(peers[hop]), error)
        if isinstance(error.cause, DeadlineError):
            late = f"stage {short_peer(peers[hop])} has not answered in time"
            self._on_wait(f"{late}: micro-batch {index} of version {version} is sent again")
        if isinstance(error.cause, _PASSING):
            await asyncio.sleep(min(LOOK_AGAIN_S, PAUSE_S * 2 ** min(num_failed, 8)))
        for peer, stage in zip(peers, await asyncio.gather(*map(self._members.ask_again, peers)), strict=True):
            if version == self._version:
                if stage is None:
                    self._progress.lose(peer)
                else:
                    self._progress.compare(peer, stage.held(version))
                    self._progress.agree(stage.agreed(version))


def hidden_codec(spec: RunSpec) -> str:
    """How hidden states and gradients of a run travel."""
    return _CODECS[spec.activations]


_CODECS = {"float32": "none", "bfloat16": "bfloat16", "int8": "int8"}
"""How the spec's activations travel, as `tensors.CODECS` names it."""

_PASSING = (OverloadedError, LedgerClosedError, VersionMismatchError)
"""What the same stage may not say a moment later."""
