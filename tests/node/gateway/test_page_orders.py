"""The operator of a page reads its lists again."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from node.gateway.callers.accounts import Accounts
from node.gateway.callers.page_orders import PageOrders, Reach
from node.watching.watcher import Watcher
from protocols.identity import from_seed
from swarm.access import Gate
from swarm.access_lists import Lists
from swarm.clock import SYSTEM

OPERATOR, DENIED = (from_seed(bytes([number]) * 32) for number in (3, 4))


async def test_a_peer_that_is_denied_later_is_not_called_by_the_operator(tmp_path: Path) -> None:
    file = tmp_path / "deny.txt"
    file.write_text("# no peer\n")
    lists = Lists(deny=file)
    gate = Gate(None, lists.read())
    watcher = Watcher(contextlib.nullcontext)  # type: ignore[arg-type]  # it never looks
    orders = PageOrders(OPERATOR, Reach(gate, lists), None, Accounts(None, SYSTEM), watcher, SYSTEM)
    running = asyncio.create_task(orders.run())
    try:
        assert gate.access.may_be_dialled(DENIED.peer_id)
        is_refused = asyncio.Event()
        with gate.running(DENIED.peer_id, is_refused.set):
            file.write_text(f"{DENIED.peer_id}\n")
            async with asyncio.timeout(60):
                await is_refused.wait()
        assert not gate.access.may_be_dialled(DENIED.peer_id)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await orders.close()
