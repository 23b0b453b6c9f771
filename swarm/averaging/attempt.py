"""One group at one member: its vote, its end, its result.

open -> agreed -> applied, or open -> aborted. An agreement is final: only `apply` ends it. What has ended is remembered for a while, so
that other members can ask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from protocols.averaging import Applied, Decision
from protocols.cards import Agreement, Card
from protocols.errors import BadRequestError, NotAgreedError, OverloadedError
from protocols.groups import Group, GroupId
from protocols.ids import ModelId, PeerId, short_peer
from protocols.units import Unit
from swarm.averaging.exchange import Exchange
from swarm.averaging.plan import Plan
from swarm.averaging.replica import Reduced, Reopening, Replica

MAX_REMEMBERED = 256
"""Ended groups whose end is remembered."""


@dataclass(slots=True, kw_only=True, eq=False)
class Attempt:
    """The state of one group here. All of it belongs to the event loop."""

    group: Group
    place: int
    """Ours in the group."""
    replica: Replica
    card: Card
    plan: Plan | None = None
    """None until `prepare` has brought all cards."""
    exchange: asyncio.Future[Exchange] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    vote: bytes = b""
    has_agreed: bool = False
    has_aborted: bool = False
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """All cards are here, or it has ended."""
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """We have voted, or it has ended."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Agreed or aborted."""
    result: tuple[Reduced, Sequence[Tensor]] | None = None
    """From our vote until the step."""
    applying: asyncio.Task[Applied] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.group.id.hex()[:8]

    @property
    def is_open(self) -> bool:
        return not self.ended.is_set()

    @property
    def holds(self) -> bool:
        """The ledgers of its units are closed: it is open, or agreed and the step is not over."""
        return self.is_open or (self.has_agreed and not self.is_over)

    @property
    def is_over(self) -> bool:
        """Has the step been done, or failed? After a failure, the state must be fetched from another member."""
        return self.applying is not None and self.applying.done()

    @property
    def is_leader(self) -> bool:
        return self.place == 0

    @property
    def agreement(self) -> Agreement:
        return Agreement(group_id=self.group.id, digest=self.vote)

    def check_leader(self, caller: PeerId) -> None:
        """BadRequestError unless the group's leader asks."""
        if caller != self.group.leader.peer:
            raise BadRequestError(
                f"only the leader {short_peer(self.group.leader.peer)} of a group may say this, not {short_peer(caller)}"
            )

    def give_vote(self, digest: bytes) -> None:
        """From here the group ends as the others say."""
        assert self.is_open and not self.vote
        self.vote = digest
        self.settled.set()

    def agree(self) -> None:
        """All members have voted for what we hold. Nothing if we have not, or it has ended."""
        if self.is_open and self.vote:
            self.has_agreed = True
            self.ended.set()

    def abort(self, how: Reopening = "as before") -> None:
        """Open the ledgers again, and drop what was reduced. Nothing if it has ended."""
        if not self.is_open:
            return
        self.has_aborted = True
        for event in (self.moved, self.settled, self.ended):
            event.set()
        self.drop(NotAgreedError(f"group {self.name} was aborted"))
        self.replica.reopen(self.group, how)

    def drop(self, reason: NotAgreedError) -> None:
        """Free what was reduced: an ended group is remembered for long, and each would keep two copies of its units' gradient."""
        self.result = None
        if self.exchange.done():
            self.exchange = asyncio.get_running_loop().create_future()
        self.exchange.set_exception(reason)
        self.exchange.exception()  # it is known: asyncio need not complain

    def said(self) -> Decision:
        """Our word on it for another member."""
        return Decision(said="agreed" if self.has_agreed else "aborted" if self.has_aborted else "open", vote=self.vote)


class Attempts:
    """The groups of this peer, by id."""

    def __init__(self) -> None:
        self._by_id: dict[GroupId, Attempt] = {}

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._by_id.values()))

    def find(self, group_id: GroupId) -> Attempt | None:
        return self._by_id.get(group_id)

    def of(self, group_id: GroupId) -> Attempt:
        """BadRequestError if no card was given for it, or it is forgotten."""
        found = self._by_id.get(group_id)
        if found is None:
            raise BadRequestError(
                f"group {group_id.hex()[:8]} is unknown here: this peer has given no card for it, or has restarted since"
            )
        return found

    def add(self, attempt: Attempt) -> None:
        """The oldest ended ones are forgotten, beyond MAX_REMEMBERED."""
        self._by_id[attempt.group.id] = attempt
        ended = [group_id for group_id, one in self._by_id.items() if not one.holds]
        for group_id in ended[: max(0, len(ended) - MAX_REMEMBERED)]:
            del self._by_id[group_id]

    def holding(self, run: ModelId, units: Iterable[Unit]) -> Attempt | None:
        """What has closed the ledger of one of these units, agreements first."""
        wanted = set(units)
        found = [one for one in self if one.holds and one.group.run == run and wanted & set(one.group.units)]
        return max(found, key=lambda one: one.has_agreed, default=None)

    def agreed(self, run: ModelId, unit: Unit) -> Agreement | None:
        """The agreement that waits for this unit's step."""
        found = self.holding(run, (unit,))
        return found.agreement if found is not None and found.has_agreed else None

    def forget(self, run: ModelId, units: Iterable[Unit]) -> None:
        """Drop agreements on these units: their state was fetched from another peer."""
        wanted = set(units)
        for one in self:
            is_waiting = one.has_agreed and (one.applying is None or one.is_over)
            if is_waiting and one.group.run == run and wanted & set(one.group.units):
                del self._by_id[one.group.id]


def refuse_busy(holding: Attempt) -> OverloadedError:
    return OverloadedError(
        f"units of this group are in group {holding.name} of version {holding.group.version}, which has not ended: try again"
    )
