"""Closes a version: all groups agree, then all step.

These are G7 and G8 of a gradient's path. Two levels, because a micro-batch that a death has taken from one unit runs through all units
again, and those must still have the weights of this version: first every group *agrees* on its reduced bytes (`close` at its leader), and
only if all groups have agreed, every member *applies* them. An agreed group survives as long as one member lives, so a version is never
applied in one part of the model and lost in another. Design: docs/architecture.md, "Training".
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from protocols.averaging import Applied, Closed
from protocols.errors import NoRouteError, SwarmError
from protocols.groups import Group, GroupId, Member
from protocols.ids import PeerId, short_peer
from protocols.masks import indices_of
from protocols.parts_of_units import Part
from protocols.runs import RunSpec
from protocols.units import Unit
from swarm import measured, trace
from swarm.averaging.asking import ask_to_apply, ask_to_close
from swarm.training.groups import grouped
from swarm.training.members import Members, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """One group that has agreed."""

    group: Group
    id: GroupId
    """Of the agreement: an older group's, if its members had agreed before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one attempt to close a version came to."""

    agreed: tuple[Agreed, ...] = ()
    missing: Mapping[Part, frozenset[int]] = field(default_factory=dict)
    """Micro-batches that no sum has, by part."""
    lost: frozenset[PeerId] = frozenset()
    """Members that did not answer: their sums are gone."""
    is_whole: bool = False
    """Have all groups agreed?"""


class Closing:
    """Closes the versions of one run. From version to version it keeps the chains: they say which side of a fork goes on."""

    def __init__(self, members: Members, spec: RunSpec) -> None:
        self._members, self._spec = members, spec
        self._version, self._chains = 0, dict[Unit, bytes]()
        self._left_at, self._left = 0, set[PeerId]()

    async def attempt(self, version: int, stages: Sequence[Stage], units: frozenset[Unit] | None = None) -> Attempt:
        """Let every group of these stages agree: their units that are at this version, also those of a stage that still fetches others.
        What a failure leaves: ledgers are open again, except where a group has agreed.

        units: only these; None = all of the model.
        """
        groups = self._groups(version, stages, units)
        answers = await asyncio.gather(*(self._close(group) for group in groups))
        agreed, missing, lost = list[Agreed](), dict[Part, frozenset[int]](), set[PeerId]()
        for group, closed in zip(groups, answers, strict=True):
            if closed is None:
                lost.add(group.leader.peer)
                continue
            lost |= set(closed.lost)
            self._leave(version, closed)
            if closed.outcome == "agreed":
                agreed.append(Agreed(group=group, id=closed.group_id))
            else:
                log.info("%s: version %d of %s: %s %s", self._spec.name, version, group.units[0], closed.outcome, closed.text)
            missing |= {
                part: frozenset(indices_of(mask)) for part, mask in zip(group.parts, closed.missing, strict=False) if mask
            }
        num_units = len(self._members.units) if units is None else len(units)
        is_whole = len(agreed) == len(groups) and sum(len(group.units) for group in groups) == num_units
        return Attempt(agreed=tuple(agreed), missing=missing, lost=frozenset(lost), is_whole=is_whole)

    async def apply(self, version: int, agreed: Sequence[Agreed]) -> Applied:
        """Let every member of these groups step; what all of them have applied together. A member that fails has to fetch the state.

        NoRouteError if no member of some group has stepped: all replicas of its units are lost.
        """
        chains, squares, num_targets = dict[Unit, bytes](), dict[Unit, float](), 0
        trace.mark_gradient("applying", version, trace.VERSION)
        with measured.timed("G8"):
            found = await asyncio.gather(*(self._apply_all(version, one) for one in agreed))
        for one, answers in zip(agreed, found, strict=True):
            applied = [answer for answer in answers if isinstance(answer, Applied)]
            if not applied:
                reason = next(answer for answer in answers if isinstance(answer, SwarmError))
                raise NoRouteError(f"no stage of {one.group.units[0]} has applied version {version + 1}: {str(reason)[:300]}")
            chains |= applied[0].chains
            squares |= applied[0].squares
            num_targets = max(num_targets, applied[0].num_targets)
        self._version, self._chains = version + 1, {**(self._chains if self._version == version + 1 else {}), **chains}
        return Applied(version=version + 1, chains=chains, squares=squares, num_targets=num_targets)

    def _groups(self, version: int, stages: Sequence[Stage], units: frozenset[Unit] | None) -> list[Group]:
        members = {stage.peer: stage.member for stage in stages}
        averaging = self._spec.averaging
        return [
            Group(
                id=GroupId(secrets.token_bytes(16)), run=self._members.run, version=version, units=common,
                members=tuple(members[peer] for peer in _led(peers, version, self._left if self._left_at == version else ())),
                num_micro_batches=self._spec.num_micro_batches, chains=self._chains_of(version, common), codec=averaging.codec,
                deadline_s=averaging.deadline_s,
            )
            for peers, common in grouped({stage.peer: _units_of(stage, version, units) for stage in stages})
        ]  # fmt: skip

    def _leave(self, version: int, closed: Closed) -> None:
        """A leader on the side of a fork that does not go on can close nothing: the next attempt has another one."""
        if self._left_at != version:
            self._left_at, self._left = version, set()
        self._left |= set(closed.behind)

    def _chains_of(self, version: int, units: Sequence[Unit]) -> tuple[bytes, ...]:
        """As `Group.chains`."""
        known = self._chains if self._version == version else {}
        return tuple(known[unit] for unit in units) if known.keys() >= set(units) else ()

    async def _close(self, group: Group) -> Closed | None:
        """None if the leader does not answer."""
        leader = group.leader
        try:
            return await ask_to_close(self._members.pool, group)
        except SwarmError as error:
            log.info("%s: stage %s does not close version %d: %s", group.run.name, short_peer(leader.peer), group.version, error)
            return None

    async def _apply_all(self, version: int, agreed: Agreed) -> list[Applied | SwarmError]:
        async def apply(member: Member) -> Applied | SwarmError:
            try:
                return await ask_to_apply(self._members.pool, member, self._members.run, version, agreed.id)
            except SwarmError as error:
                log.info("stage %s does not apply version %d: %s", short_peer(member.peer), version, error)
                return error

        return await asyncio.gather(*(apply(member) for member in agreed.group.members))


def _units_of(stage: Stage, version: int, units: frozenset[Unit] | None) -> dict[Unit, bytes]:
    """Those of these units (None: all) that it has at this version, each with the group whose step it has agreed on."""
    found = {unit: status for unit, status in stage.units.items() if status.version == version}
    return {unit: status.agreed for unit, status in found.items() if units is None or unit in units}


def _led(peers: Sequence[PeerId], version: int, left: Collection[PeerId] = ()) -> list[PeerId]:
    """The same members, another leader at each version: it has more to do than the others. left: those lead nothing if others can."""
    first = version % len(peers)
    return sorted([*peers[first:], *peers[:first]], key=lambda peer: peer in left)
