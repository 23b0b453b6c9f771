"""A trainer's calls to replicas that average: close a group, apply."""

from __future__ import annotations

from protocols import services
from protocols.averaging import Applied, Apply, Closed
from protocols.groups import Group, GroupId, Member
from protocols.ids import ModelId
from swarm.rpc.pool import ChannelPool

APPLY_S = 120.0
"""Seconds in which a member has to apply an agreed sum."""


async def ask_to_close(pool: ChannelPool, group: Group) -> Closed:
    """How the group ended, by its leader, within four deadlines of the group.

    Raises the leader's refusal, PeerUnreachableError or DeadlineError: then it is not known how it ended, and members say so in their
    status; a new `close`, by any living member, finds an agreement if there is one.
    """
    leader = group.leader
    channel = await pool.channel(leader.peer, leader.addresses, leader.certificate)
    return Closed.parse(await channel.unary(services.CLOSE, group.encode(), 4 * group.deadline_s))


async def ask_to_apply(pool: ChannelPool, member: Member, run: ModelId, version: int, group_id: GroupId) -> Applied:
    """Have one member step from `version` by what its group has agreed on; repeat it at will.

    NotAgreedError or BadRequestError if it has no such agreement: it fetches the state of a member that has stepped.
    """
    channel = await pool.channel(member.peer, member.addresses, member.certificate)
    return Applied.parse(await channel.unary(services.APPLY, Apply(run=run, version=version, id=group_id).encode(), APPLY_S))
