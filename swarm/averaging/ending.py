"""How a group ends at a member that hears nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from protocols import services
from protocols.averaging import Decision
from protocols.errors import SwarmError
from protocols.groups import Member, OfGroup
from swarm.averaging.attempt import Attempt
from swarm.rpc.pool import ChannelPool

log = logging.getLogger(__name__)

HEARS_S = 1.0
"""After its card, and after its vote, a member waits so long for the leader's next word, before it asks the leader. It notices then if the
leader is dead."""


def conclude(vote: bytes, answers: Sequence[Decision]) -> bool:
    """Has a group agreed whose leader cannot be asked? From our vote and the answers of the members that could be.

    One that knows the end is believed. Else, if all that answered have voted as we did, the leader can only have said the same: agreed.
    One that has not voted has promised, by being asked, that it never will: aborted. Members that do not know the group have restarted.
    """
    known = [answer for answer in answers if answer.said != "unknown"]
    if any(answer.said == "agreed" for answer in known):
        return True
    return all(answer.said == "open" and answer.vote == vote for answer in known)


async def see_to_its_end(attempt: Attempt, pool: ChannelPool) -> None:
    """Whatever happens to the others, the group ends here: soon after our card if the leader is gone before all cards are here, soon after
    our vote if no word comes. In between, the exchange has its own deadlines. A leader ends its own groups.
    """
    if attempt.is_leader:
        return
    if not await _comes(attempt.moved):
        await _until_moved(attempt, pool)
    await attempt.settled.wait()
    if not await _comes(attempt.ended):
        await _find_out(attempt, pool)


async def _comes(event: asyncio.Event) -> bool:
    """Within HEARS_S?"""
    try:
        async with asyncio.timeout(HEARS_S):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _until_moved(attempt: Attempt, pool: ChannelPool) -> None:
    """Our card is given, and no cards have come. A leader that lives answers when the group has ended: if it answers, or cannot be asked,
    nothing comes any more. Without a vote we are free to abort.
    """
    moved = asyncio.ensure_future(attempt.moved.wait())
    asking = asyncio.ensure_future(_ask(attempt.group.leader, attempt, pool))
    try:
        await asyncio.wait({moved, asking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (moved, asking):
            task.cancel()
        await asyncio.gather(moved, asking, return_exceptions=True)
    if not attempt.moved.is_set():
        log.info("group %s: its leader has ended it, or is gone; our ledgers are open again", attempt.name)
        attempt.abort()


async def _find_out(attempt: Attempt, pool: ChannelPool) -> None:
    """Ask the leader; if it cannot be asked, all others at once."""
    leader, *others = attempt.group.members
    found = await _ask(leader, attempt, pool)
    answers = [found] if found is not None else []
    if found is None or found.said in ("unknown", "open"):
        mine = attempt.group.members[attempt.place]
        asked = await asyncio.gather(*(_ask(one, attempt, pool) for one in others if one is not mine))
        answers = [answer for answer in asked if answer is not None]
    if not attempt.is_open:
        return
    has_agreed = conclude(attempt.vote, answers)
    log.info(
        "group %s: no word from its leader; %d answers: %s", attempt.name, len(answers), "agreed" if has_agreed else "aborted"
    )
    if has_agreed:
        attempt.agree()
    else:
        attempt.abort(attempt.plan.reopening(attempt.place) if attempt.plan else "as before")


async def _ask(member: Member, attempt: Attempt, pool: ChannelPool) -> Decision | None:
    """What a member knows of it; None if it does not answer."""
    try:
        async with asyncio.timeout(attempt.group.deadline_s):
            channel = await pool.channel(member.peer, member.addresses, member.certificate)
            return Decision.parse(await channel.unary(services.DECISION, OfGroup(id=attempt.group.id).encode()))
    except (SwarmError, TimeoutError):
        return None
