"""The leader of a group: cards, plan, votes, and the end.

It asks all members for cards, has those that take part reduce, counts their votes, and tells all how the group has ended. It is a member,
too (`member.py`), and does its own part by direct calls. Whatever happens, `close` ends the group: agreed, if all votes
are there and equal; else aborted, and all members' ledgers are open again. Which members were lost is what the leader sees itself: those
that do not answer when they are told of the abort; if all do, those that members name.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from protocols import services
from protocols.averaging import Closed, Decide, Decision, Prepare, Prepared, next_chain
from protocols.cards import Card
from protocols.errors import BadRequestError, DeadlineError, NotAgreedError, OverloadedError, SwarmError
from protocols.groups import Group, Member
from protocols.ids import PeerId, short_peer
from protocols.services import Method
from swarm import faults, trace
from swarm.averaging.member import GroupMember
from swarm.averaging.plan import MemberFailedError, Plan, check_cards, missing_text, plan
from swarm.rpc.pool import ChannelPool

log = logging.getLogger(__name__)


TOLD_S = 5.0
"""How long a member may take to acknowledge how a group has ended; it finds out by itself else."""


class Leader:
    """Closes groups whose first member this peer is."""

    def __init__(self, member: GroupMember, pool: ChannelPool) -> None:
        self._member, self._pool = member, pool

    async def close(self, group: Group) -> Closed:
        """One attempt. Raises what our own card is refused with (BadRequestError, OverloadedError …): nothing was closed then."""
        own = self._member.give_card(group)
        if own.agreed is not None:
            return Closed(outcome="agreed", group_id=own.agreed.group_id, version=group.version, digest=own.agreed.digest,
                          text="this peer had agreed before")  # fmt: skip
        attempt = self._member.attempts.of(group.id)
        cards: tuple[Card, ...] = ()
        try:
            cards = await self._cards(group, own)
            check_cards(group, cards)
            found = plan(group, cards)
            return self._refusal(group, found) or await self._vote(group, cards, found)
        except MemberFailedError as error:
            return await self._failed(group, cards, error)
        finally:
            if attempt.is_open:
                attempt.abort(plan(group, cards).reopening(0) if cards else "as before")
                await self._tell(group, Decide(id=group.id, is_agreed=False, cards=cards))

    async def _cards(self, group: Group, own: Card) -> tuple[Card, ...]:
        async def card(member: Member) -> Card:
            return Card.parse(await self._call(member, services.CARD, group.encode(), group.deadline_s))

        found = await asyncio.gather(*(card(member) for member in group.members[1:]), return_exceptions=True)
        failed = [
            (member.peer, one) for member, one in zip(group.members[1:], found, strict=True) if isinstance(one, BaseException)
        ]
        for peer, error in failed:
            if not isinstance(error, SwarmError):
                raise error
            is_busy = isinstance(error, OverloadedError)
            raise MemberFailedError(None if is_busy else peer, f"no card from {short_peer(peer)}: {error}")
        return (own, *(one for one in found if isinstance(one, Card)))

    def _refusal(self, group: Group, found: Plan) -> Closed | None:
        """How the group ends if it cannot agree."""
        behind = tuple(group.members[place].peer for place in found.behind)
        if found.agreed is not None:
            return Closed(outcome="agreed", group_id=found.agreed.group_id, version=group.version, digest=found.agreed.digest,
                          text="a member had agreed before")  # fmt: skip
        if found.version != group.version or 0 not in found.taking_part:
            return Closed(outcome="behind", group_id=group.id, version=found.version, behind=behind,
                          text=f"members have version {found.version}, the group closes {group.version}")  # fmt: skip
        if not found.is_complete:
            return Closed(outcome="missing", group_id=group.id, version=group.version, missing=found.missing, behind=behind,
                          text=missing_text(group, found.missing))  # fmt: skip
        return None

    async def _vote(self, group: Group, cards: Sequence[Card], found: Plan) -> Closed:
        """All that take part reduce; those that are behind are told that they are."""
        attempt = self._member.attempts.of(group.id)
        others = [group.members[place] for place in found.taking_part if place != 0]
        left_out = [group.members[place] for place in found.behind]
        request = Prepare(id=group.id, cards=tuple(cards)).encode()
        calls = [asyncio.create_task(self._prepared(member, request)) for member in others]
        try:
            await self._tell_some(left_out, Decide(id=group.id, is_agreed=False, cards=tuple(cards)), group)
            await self._member.vote(attempt, cards)
            async with asyncio.timeout(group.deadline_s):
                votes = await asyncio.gather(*calls)
        except NotAgreedError as error:
            raise MemberFailedError(None, str(error)) from None
        except TimeoutError:
            late = [member.peer for member, call in zip(others, calls, strict=True) if not call.done() or call.cancelled()]
            raise MemberFailedError(late[0] if late else None, f"no vote from {', '.join(map(short_peer, late))}") from None
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        self._compare(group, attempt.vote, others, votes)
        attempt.agree()
        if not attempt.has_agreed:
            raise MemberFailedError(None, "the group was aborted before all votes were counted")
        trace.mark_gradient("agreed", group.version, trace.VERSION)
        faults.point("averaging_telling", 0)
        lost = await self._tell_some(others, Decide(id=group.id, is_agreed=True), group)
        chains = tuple(next_chain(chain, attempt.vote, found.num_targets) for chain in found.chains)
        behind = tuple(group.members[place].peer for place in found.behind)
        return Closed(outcome="agreed", group_id=group.id, version=group.version, digest=attempt.vote, chains=chains, lost=lost,
                      behind=behind)  # fmt: skip

    async def _prepared(self, member: Member, request: bytes) -> Prepared:
        """A vote; MemberFailedError at once if there is none."""
        try:
            reply = Prepared.parse(await self._call(member, services.PREPARE, request, None))
        except SwarmError as error:
            raise MemberFailedError(member.peer, f"no vote from {short_peer(member.peer)}: {error}") from None
        if not reply.digest:
            raise MemberFailedError(reply.lost, f"{short_peer(member.peer)} did not vote: {reply.text}")
        return reply

    def _compare(self, group: Group, digest: bytes, others: Sequence[Member], votes: Sequence[Prepared]) -> None:
        """MemberFailedError if not all votes are equal. Of two members it is not known which one is wrong."""
        counts = Counter([digest, *(vote.digest for vote in votes)])
        if len(counts) > 1:
            most = counts.most_common(1)[0][0]
            odd = [member.peer for member, vote in zip(others, votes, strict=True) if vote.digest != most]
            log.error("group %s: the reduced bytes differ between members", group.id.hex()[:8])
            raise MemberFailedError(odd[0] if odd and len(votes) > 1 else None, "the members' reduced bytes differ")

    async def _failed(self, group: Group, cards: tuple[Card, ...], error: MemberFailedError) -> Closed:
        """Abort everywhere, and say who was lost."""
        self._member.attempts.of(group.id).abort()
        silent = await self._tell(group, Decide(id=group.id, is_agreed=False, cards=cards))
        named = (error.peer,) if error.peer is not None and error.peer != group.leader.peer else ()
        log.info("group %s of version %d: %s", group.id.hex()[:8], group.version, error)
        return Closed(outcome="failed", group_id=group.id, version=group.version, lost=silent or named,
                      text=str(error))  # fmt: skip

    async def _tell(self, group: Group, decide: Decide) -> tuple[PeerId, ...]:
        return await self._tell_some(group.members[1:], decide, group)

    async def _tell_some(self, members: Sequence[Member], decide: Decide, group: Group) -> tuple[PeerId, ...]:
        """Tell how the group has ended; those that did not answer."""
        request = decide.encode()

        async def tell(member: Member) -> bool:
            try:
                said = Decision.parse(await self._call(member, services.DECIDE, request, min(TOLD_S, group.deadline_s)))
            except BadRequestError:
                return True
            except SwarmError:
                return False
            faults.point("averaging_told", group.place_of(member.peer))
            return said.said != "unknown" or not decide.is_agreed

        heard = await asyncio.gather(*(tell(member) for member in members))
        return tuple(member.peer for member, was_heard in zip(members, heard, strict=True) if not was_heard)

    async def _call(self, member: Member, method: Method, request: bytes, timeout_s: float | None) -> bytes:
        """timeout_s: for the connection and the call."""
        try:
            async with asyncio.timeout(timeout_s):
                channel = await self._pool.channel(member.peer, member.addresses, member.certificate)
                return await channel.unary(method, request)
        except TimeoutError:
            raise DeadlineError(f"{short_peer(member.peer)} did not answer {method.name} within {timeout_s or 0:.1f} s") from None
