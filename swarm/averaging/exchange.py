"""One member's part in the all-reduce of a group.

Butterfly: of the members that take part, number j reduces slice j. To each other member goes one `slice` stream:

    up      OfGroup, then Values: our part of that slice, piece by piece (nothing if our sum is not included); later our extras
    down    Values: the reduced pieces, then the norms of the slice

A stream brings exactly the pieces that the plan says, each of exactly the bytes that the codec says, or the exchange fails. Extras are
what each member computes from the reduced values for all others (`Replica.extra`). Everything goes into a `Scratch`; if the exchange
fails, it is dropped and nothing has changed. Each wait for a member has a deadline, and its error names that member: `deadline_s`, or a
multiple of it if that member may be waiting for another one, so that the first to fail names the cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import torch
from torch import Tensor

from protocols import services
from protocols.averaging import Values
from protocols.errors import NotAgreedError, SwarmError, TensorFormatError
from protocols.groups import Group, OfGroup
from protocols.ids import short_peer
from swarm import faults
from swarm.averaging import codec
from swarm.averaging.member_stream import THIRD_HAND, MemberStream, waiting_for
from swarm.averaging.plan import MemberFailedError, Plan
from swarm.averaging.scratch import Scratch, pieces_of
from swarm.rpc.pool import ChannelPool
from swarm.rpc.stream import Stream

Extra = Callable[[Scratch, int, int], Awaitable[Tensor]]
"""From the reduced values, our number and how many take part: what we compute for all."""

WAITING_PIECES = 2
"""Pieces of one member that wait for the others' at a reducer; further ones stay in the transport."""


class Exchange:
    """One attempt at one member. `run` does it all; `serve` is called for each stream that another member opens."""

    def __init__(
        self,
        group: Group,
        plan: Plan,
        me: int,
        sums: Tensor | None,
        num_extras: Sequence[int],
        extra: Extra,
        spare: Tensor | None = None,
        on_sent: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        """me: our place in the group; sums: float32 [N] if we are included; num_extras: values of each member's extra; spare: as of
        `Scratch`; on_sent: told the bytes of each frame that was sent."""
        self._on_sent = on_sent
        self.scratch = Scratch(plan, group.codec, sums, spare)
        self.members = tuple(group.members[place] for place in plan.taking_part)
        self.extras: list[Tensor] = [torch.empty(0)] * len(self.members)
        self._group, self._extra, self._num_extras = group, extra, num_extras
        self._me = plan.taking_part.index(me)
        self._included = [number for number, place in enumerate(plan.taking_part) if place in plan.included]
        others = [number for number in range(len(self.members)) if number != self._me]
        self._parts: dict[int, asyncio.Queue[memoryview]] = {number: asyncio.Queue(WAITING_PIECES) for number in others}
        self._replies: dict[int, asyncio.Queue[bytes]] = {number: asyncio.Queue() for number in others}
        loop = asyncio.get_running_loop()
        self._reduced = [loop.create_future() for _ in self.members]
        self._own_extra: asyncio.Future[Tensor] = loop.create_future()
        self._extras_come: dict[int, asyncio.Future[None]] = {number: loop.create_future() for number in others}
        self._end: asyncio.Future[bytes] = loop.create_future()

    async def run(self, pool: ChannelPool) -> bytes:
        """The digest of all that `scratch` and `extras` hold then. MemberFailedError if there is none; nothing goes on after it."""
        tasks = [asyncio.create_task(self._ending(work)) for work in self._works(pool)]
        try:
            await self._until_failure(asyncio.gather(*tasks, return_exceptions=True))
            return self._end.result()
        finally:
            self._fail(MemberFailedError(None, "the exchange was given up"))
            self._end.exception()  # it is known: asyncio need not complain
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _works(self, pool: ChannelPool) -> list[Coroutine[Any, Any, None]]:
        return [self._reduce(), self._finish(), *(self._talk(pool, number) for number in self._parts)]

    async def _ending(self, work: Coroutine[Any, Any, None]) -> None:
        """Of any part: its failure, if it is the first one, is the failure of the exchange."""
        try:
            await work
        except TensorFormatError as error:
            failure: Exception = MemberFailedError(self.members[self._me].peer, str(error))
        except SwarmError as error:
            failure = MemberFailedError(None, str(error))
        except Exception as error:
            failure = error
        else:
            return
        self._fail(failure)

    async def _until_failure(self, work: asyncio.Future[Any]) -> None:
        """The end of `work` (of `_ending`), or the failure of the exchange if that is sooner."""
        both: set[asyncio.Future[Any]] = {work, self._end}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not (self._end.done() and self._end.exception()):
            await work
        if self._end.done() and (failure := self._end.exception()):
            raise failure

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    # --- our slice

    async def _reduce(self) -> None:
        """Our own slice: wait for each member's part of a piece, add them in member order, send the sum to all."""
        for number, piece in enumerate(self.scratch.slices[self._me]):
            parts = [(self.members[author].peer, await self._part(author)) for author in self._included]
            frame = await asyncio.to_thread(self.scratch.reduce, self._me, piece, parts)
            for reply in self._replies.values():
                reply.put_nowait(frame)
            faults.point("averaging_slice", number)
        norms = Values(self.scratch.pack_norms(self._me)).encode()
        for reply in self._replies.values():
            reply.put_nowait(norms)
        self._reduced[self._me].set_result(None)

    async def _part(self, author: int) -> memoryview | None:
        if author == self._me:
            return None
        async with waiting_for(self.members[author].peer, "part of a slice", self._group.deadline_s):
            return await self._parts[author].get()

    async def serve(self, member: int, stream: Stream) -> None:
        """A stream from the member with this place in the group, after its first frame. Raises NotAgreedError if the exchange fails."""
        number = next(n for n, one in enumerate(self.members) if one.peer == self._group.members[member].peer)
        talk = MemberStream(self.members[number].peer, stream, self._group.deadline_s, self._on_sent)
        work = asyncio.create_task(self._ending(self._serve(number, talk)))
        try:
            await self._until_failure(work)
        except MemberFailedError as failure:
            raise NotAgreedError(f"the exchange of group {self._group.id.hex()[:8]} failed: {failure}") from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _serve(self, number: int, talk: MemberStream) -> None:
        await _together(self._receive_parts(number, talk), self._send_reduced(number, talk))
        extra = torch.empty(self._num_extras[number])
        for piece in pieces_of(0, extra.numel()):
            data = await talk.receive("extra", 4 * piece.num_values, THIRD_HAND)
            codec.decode(data, "float32", extra[piece.start : piece.stop])
        self.extras[number] = extra
        self._extras_come[number].set_result(None)
        await talk.receive_end()

    async def _receive_parts(self, number: int, talk: MemberStream) -> None:
        for piece in self.scratch.slices[self._me] if number in self._included else ():
            size = codec.num_bytes(self._group.codec, piece.num_values)
            await self._parts[number].put(await talk.receive("part of a slice", size))

    async def _send_reduced(self, number: int, talk: MemberStream) -> None:
        for _ in range(len(self.scratch.slices[self._me]) + 1):  # the norms are the last
            await talk.send(await self._replies[number].get())

    # --- the others' slices

    async def _talk(self, pool: ChannelPool, number: int) -> None:
        """Our part of another member's slice goes up, its reduced pieces and norms come down, then our extra goes up."""
        who = self.members[number]
        async with waiting_for(who.peer, "slice stream", self._group.deadline_s):
            channel = await pool.channel(who.peer, who.addresses, who.certificate)
            stream = await channel.stream(services.SLICE)
        talk = MemberStream(who.peer, stream, self._group.deadline_s, self._on_sent)
        try:
            await _together(self._send_parts(number, talk), self._receive_reduced(number, talk))
            await self._send_extra(talk)
        finally:
            talk.cancel()

    async def _send_parts(self, number: int, talk: MemberStream) -> None:
        await talk.send(OfGroup(id=self._group.id).encode())
        for piece in self.scratch.slices[number] if self._me in self._included else ():
            await talk.send(self.scratch.contribution(piece))  # under a millisecond: less than a thread costs

    async def _receive_reduced(self, number: int, talk: MemberStream) -> None:
        for piece in self.scratch.slices[number]:
            data = await talk.receive("reduced piece", codec.num_bytes(self._group.codec, piece.num_values))
            try:
                await asyncio.to_thread(self.scratch.take, number, piece, data)
            except TensorFormatError as error:
                raise MemberFailedError(talk.peer, f"a reduced piece of {short_peer(talk.peer)}: {error}") from None
        norms = await talk.receive("norms", len(self.scratch.pack_norms(number)))
        if not self.scratch.take_norms(number, norms):
            raise MemberFailedError(talk.peer, f"{short_peer(talk.peer)} sent norms that are none")
        self._reduced[number].set_result(None)

    async def _send_extra(self, talk: MemberStream) -> None:
        extra = await asyncio.shield(self._own_extra)
        for piece in pieces_of(0, extra.numel()):
            await talk.send(Values(codec.encode(extra[piece.start : piece.stop], "float32")).encode())
        await talk.end()

    # --- the end

    async def _finish(self) -> None:
        """When all slices are reduced: compute our extra, wait for the others', and take the digest of it all."""
        await asyncio.gather(*self._reduced)
        extra = await self._extra(self.scratch, self._me, len(self.members))
        assert extra.numel() == self._num_extras[self._me]
        self.extras[self._me] = extra
        self._own_extra.set_result(extra)
        for number, come in self._extras_come.items():
            async with waiting_for(self.members[number].peer, "extra", THIRD_HAND * self._group.deadline_s):
                await asyncio.shield(come)
        digest = await asyncio.to_thread(self.scratch.digest, self.extras)
        if not self._end.done():
            self._end.set_result(digest)


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    """All of them; the first failure of one ends the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
