"""A member of groups: card, vote, agreement, step.

A vote is a promise: after it, this member ends the group only as the others do. It hears the end from the leader; if it does not, it asks
the leader, and if the leader is gone, the other members (`ending.py`). A member that is asked before it has voted aborts, and never
votes in that group. The leader, while it lives, answers only when the group has ended.

It remains possible that a member cannot reach a leader that lives, and agrees on the others' word while the leader aborts for want of its
vote. Its next card says that it has agreed: then the others take the state from it after the step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from protocols.averaging import Applied, Apply, Decide, Decision, Prepare, Prepared, next_chain
from protocols.cards import Card, Ledger, UnitSum
from protocols.errors import BadRequestError, DeadlineError, NotAgreedError, OverloadedError
from protocols.groups import Group, OfGroup
from protocols.identity import Identity
from protocols.ids import ModelId, PeerId
from protocols.parts_of_units import parts_of
from protocols.weights_id import CHAIN_BYTES
from swarm import faults, measured, trace
from swarm.averaging.attempt import Attempt, Attempts, refuse_busy
from swarm.averaging.ending import see_to_its_end
from swarm.averaging.exchange import Exchange
from swarm.averaging.plan import MemberFailedError, Plan, check_cards, plan
from swarm.averaging.replica import Reduced, Replica
from swarm.averaging.scratch import Scratch
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream
from swarm.tasks import Tasks


class GroupMember:
    """What this peer does in groups that others lead, and in its own. Everything runs in one event loop."""

    def __init__(
        self,
        identity: Identity,
        pool: ChannelPool,
        replica_of: Callable[[ModelId], Replica],
        tasks: Tasks,
        on_sent: Callable[[int], None],
    ) -> None:
        """As of `Averager`."""
        self._on_sent = on_sent
        self.attempts = Attempts()
        self._identity, self._pool, self._replica_of, self._tasks = identity, pool, replica_of, tasks
        self._spare: Tensor | None = None
        """Memory of the last reduced values that were applied, for the next ones."""

    # --- the card

    def give_card(self, group: Group) -> Card:
        """Our signed card; the ledgers of the group's units are closed from here, until the group ends or nothing is heard of it.

        If the units have agreed in another group, the card says so, and nothing is closed. OverloadedError while one of them is in another
        group that has not ended, or if only some of them have agreed; what `Replica.card` raises.
        """
        place = group.place_of(self._identity.peer_id)
        known = self.attempts.find(group.id)
        if known is not None:
            if known.group != group or not known.is_open:
                raise BadRequestError(f"group {group.id.hex()[:8]} is known here, and was another or has ended; choose a new id")
            return known.card
        holding = self.attempts.holding(group.run, group.units)
        if holding is not None:
            if not holding.has_agreed:
                raise refuse_busy(holding)
            if not set(group.units) <= set(holding.group.units):
                raise OverloadedError(
                    f"some units of this group have agreed in group {holding.name}, the others have not: close them apart"
                )
            return self._signed(group, Card(group=b"", peer="", ledger=_nothing(group), agreed=holding.agreement))  # type: ignore[arg-type]
        faults.point("averaging_card", place)
        replica = self._replica_of(group.run)
        card = self._signed(group, Card(group=b"", peer=self._identity.peer_id, ledger=replica.card(group)))
        attempt = Attempt(group=group, place=place, replica=replica, card=card)
        self.attempts.add(attempt)
        self._tasks.keep(see_to_its_end(attempt, self._pool), f"group {group.id.hex()[:8]}")
        return card

    def _signed(self, group: Group, card: Card) -> Card:
        return replace(card, group=group.digest(), peer=self._identity.peer_id).signed(self._identity.sign)

    # --- the vote

    async def prepare(self, request: Prepare, caller: PeerId) -> Prepared:
        """Reduce with the others. The reply is our vote, or says that we have aborted, and because of whom."""
        attempt = self.attempts.of(request.id)
        attempt.check_leader(caller)
        try:
            await self.vote(attempt, request.cards)
        except MemberFailedError as error:
            return Prepared(lost=error.peer, text=str(error))
        except NotAgreedError as error:
            return Prepared(text=str(error))
        faults.point("averaging_voted", attempt.place)
        return Prepared(digest=attempt.vote)

    async def vote(self, attempt: Attempt, cards: Sequence[Card]) -> None:
        """Check the cards, exchange, and vote. MemberFailedError or NotAgreedError if it comes to none: it has aborted then."""
        try:
            attempt.plan = self._checked_plan(attempt, cards)
            with measured.timed("G7"):
                digest = await self._exchange(attempt, attempt.plan)
        except BaseException:
            attempt.abort(attempt.plan.reopening(attempt.place) if attempt.plan else "as before")
            raise
        faults.point("averaging_reduced", attempt.place)
        if not attempt.is_open:
            raise NotAgreedError(f"group {attempt.name} was aborted while it reduced")
        attempt.give_vote(digest)

    def _checked_plan(self, attempt: Attempt, cards: Sequence[Card]) -> Plan:
        if attempt.plan is not None or not attempt.is_open:
            raise NotAgreedError(f"group {attempt.name} has ended here, or reduces already")
        check_cards(attempt.group, cards)
        found = plan(attempt.group, cards)
        if cards[attempt.place] != attempt.card or not found.is_complete or found.agreed:
            raise NotAgreedError("these cards are not ours, or not all micro-batches are in them")
        if attempt.place not in found.taking_part or found.version != attempt.group.version:
            raise NotAgreedError(f"version {attempt.group.version} of these units is not what members have")
        attempt.moved.set()
        return found

    async def _exchange(self, attempt: Attempt, found: Plan) -> bytes:
        """Fill the attempt's result; the digest."""
        group, replica = attempt.group, attempt.replica
        count = len(found.taking_part)

        async def extra(scratch: Scratch, member: int, num_members: int) -> Tensor:
            return await replica.extra(group, _reduced(group, found, scratch, b""), member, num_members)

        sums = await replica.sums(group) if attempt.place in found.included else None
        extras = [replica.num_extra(group, member, count) for member in range(count)]
        codec_name = group.codec if count > 1 else "float32"  # alone, nothing is sent
        spare, self._spare = self._spare, None
        exchange = Exchange(replace(group, codec=codec_name), found, attempt.place, sums, extras, extra, spare, self._on_sent)
        if not attempt.is_open:
            raise NotAgreedError(f"group {group.id.hex()[:8]} was aborted")
        attempt.exchange.set_result(exchange)
        running = asyncio.ensure_future(exchange.run(self._pool))
        ended = asyncio.ensure_future(attempt.ended.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {running, ended}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise NotAgreedError(f"group {group.id.hex()[:8]} was aborted while it reduced")
            digest = running.result()
        finally:
            for task in (running, ended):
                task.cancel()
            await asyncio.gather(running, ended, return_exceptions=True)
        attempt.result = _reduced(group, found, exchange.scratch, digest), exchange.extras
        trace.mark_gradient("reduced", group.version, trace.VERSION, 4 * exchange.scratch.values.numel())
        return digest

    async def slice(self, stream: Stream, caller: PeerId) -> None:
        """Another member's stream. It is read only if that peer is a member of a group that reduces here."""
        first = await stream.receive()
        attempt = self.attempts.of(OfGroup.parse(first or b"").id)
        place = attempt.group.place_of(caller)
        try:
            async with asyncio.timeout(attempt.group.deadline_s):
                exchange = await asyncio.shield(attempt.exchange)
        except TimeoutError:
            raise DeadlineError(f"group {attempt.name}: this peer has not been told to reduce") from None
        if attempt.plan is None or place not in attempt.plan.taking_part or not attempt.is_open:
            raise NotAgreedError(f"group {attempt.name} has ended here, or leaves this peer out")
        await exchange.serve(place, stream)

    # --- the end

    def decide(self, request: Decide, caller: PeerId) -> Decision:
        """The leader's word on how a group ended; ours."""
        attempt = self.attempts.find(request.id)
        if attempt is None:
            return Decision(said="unknown")
        attempt.check_leader(caller)
        faults.point("averaging_decided", attempt.place)
        if request.is_agreed:
            attempt.agree()
        elif attempt.is_open:
            attempt.abort(_reopening(attempt, request.cards))
        return attempt.said()

    async def decision(self, request: OfGroup, caller: PeerId) -> Decision:
        """What we know of a group, for a member of it that has not heard its end."""
        attempt = self.attempts.find(request.id)
        if attempt is None:
            return Decision(said="unknown")
        attempt.group.place_of(caller)
        if attempt.is_leader:
            await attempt.ended.wait()
        elif attempt.is_open and not attempt.vote:
            attempt.abort()
        return attempt.said()

    # --- the step

    async def apply(self, request: Apply) -> Applied:
        """Step with what the group has agreed on, once. NotAgreedError if it has not; BadRequestError if it is not known here."""
        attempt = self.attempts.of(request.id)
        group = attempt.group
        if (group.run, group.version) != (request.run, request.version):
            raise BadRequestError(
                f"group {group.id.hex()[:8]} is of version {group.version} of {group.run}, not {request.version}"
            )
        if attempt.is_open and attempt.vote:  # it is still finding out; it always ends
            await attempt.ended.wait()
        if not attempt.has_agreed:
            raise NotAgreedError(f"group {group.id.hex()[:8]} has not agreed here: there is nothing to apply")
        if attempt.applying is None:
            attempt.applying = asyncio.create_task(self._step(attempt), name=f"step of group {group.id.hex()[:8]}")
        return await asyncio.shield(attempt.applying)

    async def _step(self, attempt: Attempt) -> Applied:
        faults.point("averaging_applying", attempt.place)
        assert attempt.result is not None
        reduced, extras = attempt.result
        await attempt.replica.apply(attempt.group, reduced, extras)
        attempt.drop(NotAgreedError(f"group {attempt.name} has ended: its sum is applied"))
        self._spare = reduced.values
        faults.point("averaging_applied", attempt.place)
        return Applied(
            version=attempt.group.version + 1, chains=reduced.chains, squares=reduced.norms, num_targets=reduced.num_targets
        )


def _nothing(group: Group) -> Ledger:
    """The ledger of a card that says only what was agreed."""
    chain = bytes(CHAIN_BYTES if group.version else 0)
    units = tuple(UnitSum(num_values=0, chain=chain, held=(0,) * len(parts_of(unit))) for unit in group.units)
    return Ledger(version=group.version, units=units)


def _reopening(attempt: Attempt, cards: Sequence[Card]) -> Any:
    """What the cards say about our own sum. Without cards, or with others than the group's, nothing."""
    try:
        check_cards(attempt.group, cards)
        return plan(attempt.group, cards).reopening(attempt.place)
    except MemberFailedError:
        return "as before"


def _reduced(group: Group, found: Plan, scratch: Scratch, digest: bytes) -> Reduced:
    chains = {
        unit: next_chain(chain, digest, found.num_targets) if digest else b""
        for unit, chain in zip(group.units, found.chains, strict=True)
    }
    norms = dict(zip(group.units, scratch.unit_norms(), strict=True))
    return Reduced(values=scratch.values, norms=norms, digest=digest, num_targets=found.num_targets, chains=chains)
