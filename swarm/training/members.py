"""The peers of one run, as a trainer sees them.

Records in the directory say which peers are stages and trainers of the run (`protocols/roles.py`); what changes with every version is
asked of each stage (`run_status`). A stage that does not answer, or broke a call a moment ago, is left out until it answers again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from protocols import services
from protocols.errors import DeadlineError, NoRouteError, SwarmError
from protocols.groups import Member
from protocols.held import Held, whole_versions
from protocols.ids import ModelId, PeerId, Span, short_peer
from protocols.kept import Kept
from protocols.parts_of_units import EMBED, HEAD, Part, parts_of
from protocols.records import PeerRecord
from protocols.route import Hop
from protocols.run_status import RunStatus, StatusRequest, UnitStatus
from protocols.units import Blocks, Ends, Unit
from swarm import awake
from swarm.asking import answers
from swarm.clock import SYSTEM, Clock
from swarm.rpc.pool import ChannelPool
from swarm.training.known_records import Directory, KnownRecords
from swarm.training.progress import Progress
from swarm.training.route_choice import Leg, StageLoad

log = logging.getLogger(__name__)

HOLDERS = frozenset(("stage", "keeper"))
"""Roles of peers that give the state of units."""

STATUS_S = 3.0
"""Seconds in which a stage has to say how far it is."""

RECORDS_S = 2.0
"""Age in seconds from which on `look` reads the directory anew: a look-up in the DHT takes longer than asking the stages."""

MAX_SILENCE_S = 24.0
"""Longest time until a stage that has not answered is asked again."""


@dataclass(slots=True, eq=False)
class Stage:
    """One stage of the run, with what it said last."""

    record: PeerRecord
    status: RunStatus
    units: Mapping[Unit, UnitStatus] = field(init=False)

    def __post_init__(self) -> None:
        self.units = {one.unit: one for one in self.status.units}

    @property
    def peer(self) -> PeerId:
        return self.record.peer

    @property
    def span(self) -> Span:
        """Its consecutive blocks."""
        blocks = sorted(unit.start for unit in self.units if isinstance(unit, Blocks))
        return Span(blocks[0], blocks[-1] + 1)

    @property
    def member(self) -> Member:
        return Member(peer=self.peer, addresses=self.record.addresses, certificate=self.record.certificate)

    def is_at(self, version: int) -> bool:
        """Are all its units at this version, so that its sums take part in closing it?"""
        return not self.status.is_catching_up and all(unit.version == version for unit in self.units.values())

    def held(self, version: int) -> dict[Part, int]:
        """What is in its sums of this version, as masks (bit n: micro-batch n), by part; nothing of units of another version."""
        units = [unit for unit in self.units.values() if unit.version == version]
        return {part: mask for unit in units for part, mask in unit.ledger.items()}

    def agreed(self, version: int) -> list[Part]:
        """The parts on whose step from this version it has agreed, and which it has not done."""
        return [part for one in self.units.values() if one.version == version and one.agreed for part in one.ledger]

    def takes(self, version: int) -> bool:
        """Does it take micro-batches of this version?"""
        return self.is_at(version) and not self.status.is_paused

    def load(self, num_sent: int) -> StageLoad:
        """What the choice of a route goes by. num_sent: micro-batches that this trainer has under way through it."""
        status = self.status
        return StageLoad(
            peer=self.peer,
            span=self.span,
            block_ms=status.forward_ms + status.backward_ms,
            num_waiting=max(status.queue, num_sent),
        )

    def hop(self, span: Span) -> Hop:
        """Its place in a route that leads through these of its blocks."""
        return Hop(self.peer, self.record.addresses, self.record.certificate, Blocks.of(span))


class Silences:
    """Peers that let a question run into its deadline: the next one waits, longer each time, so that all others are not kept waiting."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: dict[tuple[PeerId, tuple[str, ...]], tuple[int, float]] = {}

    def is_silent(self, record: PeerRecord) -> bool:
        """Is it too early to ask it again? Never after it has come back at another address."""
        return self._until.get((record.peer, record.addresses), (0, 0.0))[1] > self._clock.now_s()

    def note(self, record: PeerRecord) -> None:
        """It has not answered in time."""
        key = record.peer, record.addresses
        count = self._until.get(key, (0, 0.0))[0]
        self._until[key] = count + 1, self._clock.now_s() + min(MAX_SILENCE_S, STATUS_S * 2**count)

    def end(self, record: PeerRecord) -> None:
        """It has answered."""
        self._until.pop((record.peer, record.addresses), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A peer that gives the state of units: a stage, a keeper, or both."""

    record: PeerRecord
    units: Mapping[Unit, int]
    """The version of each unit that it trains; of a keeper alone none."""
    kept: Kept | None
    """The newest checkpoint that it keeps."""
    held: tuple[Held, ...] = ()
    """What it has in memory of versions that the stages hold together."""
    has_memory: bool = False
    """It has memory for copies of others' units."""

    def gives(self, unit: Unit, kept: Kept) -> bool:
        """Does it keep, or hold, the unit of this version and history?"""
        return kept == self.kept or any(
            one.version == kept.version and unit in one.chains and one.chains[unit] == kept.chains.get(unit) for one in self.held
        )


def all_kept(holders: Sequence[Holder], own: Kept | None = None, own_held: Iterable[Held] = ()) -> list[Kept]:
    """The versions of which all units can be had: checkpoints, and what stages hold together. own…: of this process, which no holder is."""
    kept = [one for one in (own, *(holder.kept for holder in holders)) if one is not None]
    return [*kept, *whole_versions([*own_held, *(one for holder in holders for one in holder.held)])]


class Members:
    """All stages of a run that answer. `look` asks them again; the rest is what they said then."""

    def __init__(
        self,
        run: ModelId,
        directory: Directory,
        pool: ChannelPool,
        *,
        num_blocks: int | None = None,
        me: PeerId | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        """num_blocks: of the whole model; what stages say of units that it has not is ignored. None: not known. me: this peer, which is
        left out: it does not call itself."""
        self.run, self.pool, self.units = run, pool, frozenset(() if num_blocks is None else all_units(num_blocks))
        self._clock, self._silences = clock, Silences(clock)
        self._stages: dict[PeerId, Stage] = {}
        self._records = KnownRecords(run, directory, me, clock)
        """They are read anew after RECORDS_S, or at once if a stage has gone, or none is known."""

    @property
    def num_blocks(self) -> int:
        """Of the whole model, which trainers and evaluators of it know."""
        assert self.units, "these members were made without num_blocks"
        return len(self.units) - 1

    @property
    def stages(self) -> Sequence[Stage]:
        """In the order of their PeerIDs."""
        return [self._stages[peer] for peer in sorted(self._stages)]

    def of(self, peer: PeerId) -> Stage | None:
        return self._stages.get(peer)

    def leave_out(self, peer: PeerId) -> None:
        """It broke a call: it takes no part until `look` finds that it answers."""
        if self._stages.pop(peer, None) is not None:
            self._records.outdate()

    async def look(self, *, is_anew: bool = False) -> Sequence[Stage]:
        """Ask every stage how far it is, and keep those that answer; none, if the directory never could be asked.

        is_anew: read the directory first, though it was read a moment ago.
        """
        try:
            known = await self._records.read(RECORDS_S * (not is_anew))
        except NoRouteError as error:
            log.warning("%s", error)
            known = ()
        records = [record for record in known if any(role.kind == "stage" for role in record.roles_of(self.run.digest))]
        found = {
            record.peer: stage
            async for record, status in answers(records, self._ask)
            if status is not None and (stage := self._stage(record, status)) is not None
        }
        if not found or not self._stages.keys() <= found.keys():
            self._records.outdate()
        self._stages = found
        return self.stages

    async def look_at_all(self) -> list[Holder]:
        """All other peers that give the state of units, with what they have: stages, and keepers of checkpoints. NoRouteError if the
        directory never could be asked: nothing is known of them."""
        known = await self._records.read(0.0)
        records = [record for record in known if {role.kind for role in record.roles_of(self.run.digest)} & HOLDERS]
        return [
            Holder(
                record=record,
                units={one.unit: one.version for one in status.units},
                kept=status.kept,
                held=status.held,
                has_memory=status.has_memory,
            )
            async for record, status in answers(records, self._ask)
            if status is not None
        ]

    def covers(self, version: int) -> bool:
        """Did a stage at this version answer for each unit of the model, when the stages were asked last?"""
        return self.units <= {unit for stage in self._stages.values() if stage.is_at(version) for unit in stage.units}

    async def ask_again(self, peer: PeerId) -> Stage | None:
        """Ask one stage that is known how far it is; None, and it is left out, if it does not answer."""
        if (stage := self._stages.get(peer)) is None:
            return None
        status = await self._ask(stage.record)
        found = None if status is None else self._stage(stage.record, status)
        if found is None:
            self.leave_out(peer)
        else:
            self._stages[peer] = found
        return found

    def _stage(self, record: PeerRecord, status: RunStatus) -> Stage | None:
        """None if it trains no block (any more): no route leads there."""
        own = tuple(one for one in status.units if not self.units or one.unit in self.units)
        return Stage(record, replace(status, units=own)) if any(isinstance(one.unit, Blocks) for one in own) else None

    async def _ask(self, record: PeerRecord, *, is_again: bool = False) -> RunStatus | None:
        if self._silences.is_silent(record):
            return None
        watch: awake.Watch | None = None
        try:
            async with awake.timeout(STATUS_S) as watch:
                channel = await self.pool.channel(record.peer, record.addresses, record.certificate)
                found = RunStatus.parse(await channel.unary(services.RUN_STATUS, StatusRequest(run=self.run).encode(), STATUS_S))
                self._silences.end(record)
                return found
        except (SwarmError, TimeoutError) as error:
            if isinstance(error, TimeoutError | DeadlineError):
                if watch is not None and watch.was_stopped and not is_again:  # the answer may be here, unread
                    return await self._ask(record, is_again=True)
                self._silences.note(record)
            log.info("stage %s of %s does not say how far it is: %s", short_peer(record.peer), self.run.name, error)
            return None


def parts_on(legs: Sequence[Leg]) -> dict[Part, PeerId]:
    """Which stage a route leads through in each part of the model: blocks, embedding at the first, head at the last."""
    found = {Part.block(block): leg.peer for leg in legs for block in range(leg.span.start, leg.span.stop)}
    return {**found, EMBED: legs[0].peer, HEAD: legs[-1].peer}


def progress_of(stages: Iterable[Stage], version: int, num_micro_batches: int, num_blocks: int) -> Progress:
    """What the sums of these stages hold of a version, by what they said last."""
    progress = Progress(num_micro_batches, all_parts(num_blocks))
    for stage in stages:
        progress.compare(stage.peer, stage.held(version))
        progress.agree(stage.agreed(version))
    return progress


def all_units(num_blocks: int) -> list[Unit]:
    """Every elementary unit of a model."""
    return [*(Blocks(number, number + 1) for number in range(num_blocks)), Ends()]


def all_parts(num_blocks: int) -> list[Part]:
    """Every part of a model."""
    return [part for unit in all_units(num_blocks) for part in parts_of(unit)]
