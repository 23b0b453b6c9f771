"""Gives orders of the page's visitors, as the gateway's operator.

A visitor may give orders if the gateway has no keys (then only users of its machine reach it), or if the visitor's key was made with
`--operator`. Each order checks that again. The operator's key stays here: a browser never sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers

from node.dashboard.operating import OrderRefusedError
from node.gateway.callers.accounts import Accounts
from node.gateway.http.refusal import RefusedError
from node.watching.changes import label
from node.watching.watcher import Watcher
from protocols.errors import SwarmError
from protocols.identity import Identity
from protocols.ids import PeerId, parse_peer_id
from protocols.orders import Ban, Order, OrderReply
from protocols.records import PeerRecord
from protocols.words import counted, one_line
from swarm.access import Gate
from swarm.access_lists import Lists, keep_reading
from swarm.bans import Bans
from swarm.clock import Clock
from swarm.peer import operator

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at which nodes are to be asked."""

AGAIN_S = 15.0
"""Seconds until a node is asked again what the operator may order there."""

ASK_S = 5.0
"""Seconds in which a node has to answer that question; an order may take as long as its call allows."""

AT_ONCE = 16
"""Nodes that are asked at once."""

HERE = "this machine"
"""What a visitor is called at a gateway without keys."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Which nodes the operator may call."""

    gate: Gate
    lists: Lists
    """Read again when they change."""


class PageOrders:
    """`Operating` over one gateway."""

    def __init__(
        self, identity: Identity, reach: Reach, bans: Bans | None, accounts: Accounts, watcher: Watcher, clock: Clock
    ) -> None:
        """bans: of the gateway itself; None = this is the page of a node, which answers no prompts."""
        self._reach, self._pool = reach, operator.connections(identity, reach.gate)
        self._bans, self._accounts, self._watcher, self._clock = bans, accounts, watcher, clock
        self._said: dict[PeerId, tuple[float, OrderReply | None]] = {}
        """Node -> when it was asked, and what it answered; None = nothing that can be used."""

    def visitor(self, headers: Headers) -> str | None:
        try:
            account = self._accounts.of(headers)
        except RefusedError:
            return None
        if not self._accounts.needs_key:
            return HERE
        return f"key {account.name}" if account.is_operator else None

    def known(self, peer: PeerId) -> OrderReply | None:
        return self._said.get(peer, (0.0, None))[1]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._reach.lists.files:
                group.create_task(keep_reading(self._reach.lists, self._reach.gate, self._pool.forget_refused, log.info))
            group.create_task(self._keep_asking())

    async def _keep_asking(self) -> None:
        while True:
            if self._watcher.visitors.here.is_set():
                records = self._watcher.look.records
                self._said = {peer: said for peer, said in self._said.items() if peer in records}
                await self._ask(self._due(records.values()))
            await asyncio.sleep(LOOK_S)

    def _due(self, records: Iterable[PeerRecord]) -> list[PeerRecord]:
        """The nodes whose answer is older than AGAIN_S, the oldest first, AT_ONCE of them at most."""
        before_s = self._clock.now_s() - AGAIN_S
        silent = self._watcher.look.silent
        due = [one for one in records if one.peer not in silent and self._said.get(one.peer, (-AGAIN_S, None))[0] <= before_s]
        return sorted(due, key=lambda one: self._said.get(one.peer, (-AGAIN_S, None))[0])[:AT_ONCE]

    async def _ask(self, records: list[PeerRecord]) -> None:
        async def ask(record: PeerRecord) -> None:
            reply: OrderReply | None = None
            with contextlib.suppress(SwarmError, TimeoutError):  # it is an older node, or takes no orders from us
                reply = await self._give(record, Order(action="ask"), ASK_S)
            self._said[record.peer] = self._clock.now_s(), reply

        await asyncio.gather(*map(ask, records))

    async def _give(self, record: PeerRecord, order: Order, timeout_s: float | None = None) -> OrderReply:
        async with asyncio.timeout(timeout_s):
            return await operator.give(self._pool, order, record.peer, record.addresses, record.certificate)

    async def order(self, headers: Headers, peer: PeerId, order: Order) -> str:
        who, record = self._checked(headers), self._watcher.look.peer(peer)
        if record is None:
            raise OrderRefusedError("this node is not announced now, so it cannot be reached")
        try:
            reply = await self._give(record, order)
        except SwarmError as error:
            self._tell(f"{who}: {order.action} at {label(record.name, peer)} was refused: {error}", peer)
            raise OrderRefusedError(one_line(str(error))) from error
        self._said[peer] = self._clock.now_s(), reply
        done = one_line(reply.done)
        self._tell(f"{who}: {order.action} at {label(record.name, peer)}: {done}", peer)
        return done

    def bans(self) -> tuple[Ban, ...] | None:
        return None if self._bans is None else self._bans.listed()

    def ban_here(self, headers: Headers, peer: PeerId, seconds: int) -> str:
        who, record = self._checked(headers), self._watcher.look.peer(peer)
        if self._bans is None:
            raise OrderRefusedError("this is a node's page: no answer goes out here; a gateway's page has this order")
        try:
            parse_peer_id(peer)  # it comes from the page's address
            if seconds:
                self._bans.add(peer, Order(action="ban", peer=peer, seconds=seconds).seconds)
            else:
                self._bans.lift(peer)
        except SwarmError as error:
            raise OrderRefusedError(one_line(str(error))) from error
        done = (
            f"no answer of this gateway goes over it for {counted(seconds, 'second')}"
            if seconds
            else "answers of this gateway may go over it again"
        )
        self._tell(f"{who}: {label(record.name if record else '', peer)}: {done}", peer)
        return done

    async def close(self) -> None:
        await self._pool.close()

    def _checked(self, headers: Headers) -> str:
        who = self.visitor(headers)
        if who is None:
            raise OrderRefusedError(
                "your key may not give orders: its operator makes one that may, by swarm keys add NAME --operator"
            )
        return who

    def _tell(self, text: str, peer: PeerId) -> None:
        log.info("order of %s", text)
        self._watcher.tell("order", text, peer)
