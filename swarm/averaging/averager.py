"""The averager of one peer: its RPC handlers and their tasks.

A call whose caller leaves goes on here: a group that was begun is ended, a step that was begun is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from protocols.averaging import Apply, Closed, Decide, Prepare
from protocols.cards import Agreement
from protocols.errors import BadRequestError
from protocols.groups import Group, OfGroup
from protocols.identity import Identity
from protocols.ids import ModelId
from protocols.units import Unit
from swarm.averaging.leader import Leader
from swarm.averaging.member import GroupMember
from swarm.averaging.replica import Replica
from swarm.rpc.call import Call, Handlers
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream
from swarm.tasks import Tasks

T = TypeVar("T")


class Averager:
    """Use: `handlers()` into the server; `await stop()` at the end, after the server's."""

    def __init__(
        self,
        identity: Identity,
        pool: ChannelPool,
        replica_of: Callable[[ModelId], Replica],
        on_sent: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """replica_of: this peer's replica of a run's units; raises a SwarmError if there is none. on_sent: told the bytes of each frame of
        values that was sent."""
        self._tasks = Tasks()
        self._identity = identity
        self._member = GroupMember(identity, pool, replica_of, self._tasks, on_sent)
        self._leader = Leader(self._member, pool)

    def handlers(self) -> Handlers:
        """By the names of `protocols/services.py`."""
        return {
            "close": self._on_close,
            "card": self._on_card,
            "prepare": self._on_prepare,
            "slice": self._on_slice,
            "decide": self._on_decide,
            "decision": self._on_decision,
            "apply": self._on_apply,
        }

    async def close(self, group: Group) -> Closed:
        """Have a group agree whose leader this peer is: what the RPC `close` does."""
        if group.leader.peer != self._identity.peer_id:
            raise BadRequestError("a group is closed by its first member, its leader, and that is another peer")
        return await self._to_the_end(self._leader.close(group), f"close group {group.id.hex()[:8]}")

    def agreement(self, run: ModelId, unit: Unit) -> Agreement | None:
        """On what this peer's replica of the unit has agreed and has not stepped yet."""
        return self._member.attempts.agreed(run, unit)

    def forget(self, run: ModelId, units: Iterable[Unit]) -> None:
        """Drop agreements on these units, whose state was fetched from another peer."""
        self._member.attempts.forget(run, units)

    async def stop(self) -> None:
        """Cancel what runs. Groups that have not ended are aborted here, except where we have voted."""
        await self._tasks.stop()

    async def _to_the_end(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Owned by us, so that a caller that leaves does not stop it in the middle."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result = await work
            except BaseException as error:
                if not outcome.done():
                    outcome.set_exception(error)
                    outcome.exception()  # the caller may have left
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            if not outcome.done():
                outcome.set_result(result)

        self._tasks.keep(run(), name)
        return await outcome

    async def _on_close(self, request: bytes, call: Call) -> bytes:
        return (await self.close(Group.parse(request))).encode()

    async def _on_card(self, request: bytes, call: Call) -> bytes:
        group = Group.parse(request)
        if call.peer != group.leader.peer:
            raise BadRequestError("only the leader of a group asks for its cards")
        return self._member.give_card(group).encode()

    async def _on_prepare(self, request: bytes, call: Call) -> bytes:
        return (await self._member.prepare(Prepare.parse(request), call.peer)).encode()

    async def _on_slice(self, stream: Stream, call: Call) -> None:
        await self._member.slice(stream, call.peer)

    async def _on_decide(self, request: bytes, call: Call) -> bytes:
        return self._member.decide(Decide.parse(request), call.peer).encode()

    async def _on_decision(self, request: bytes, call: Call) -> bytes:
        return (await self._member.decision(OfGroup.parse(request), call.peer)).encode()

    async def _on_apply(self, request: bytes, call: Call) -> bytes:
        return (await self._to_the_end(self._member.apply(Apply.parse(request)), "apply")).encode()
