"""Many sessions over real sockets leave nothing behind.

They end in every way. A node at its limit sends its clients elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from node.device.pending import Pending
from node.device.work import Request, Step
from node.engines.engine import choose_engine
from node.serving.host import HostEngines
from protocols.errors import OverloadedError
from protocols.ids import Span
from swarm.inference.client.session import Session, SessionConfig
from swarm.inference.hop.hops import HopLimits
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from swarm.streams.links import Links
from tests.families import Checkpoints
from tests.swarm.inference.toy import (
    ToyEngine,
    ToyNode,
    ToySwarm,
    ask,
    fresh_seed,
    hurry,
    random_tokens,
    reference,
    until,
)


class SlowEngine(ToyEngine):
    """A toy engine that takes 2 ms a token, and counts tokens."""

    num_run = 0

    def step(self, items: Any, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        time.sleep(0.002 * hidden.shape[1])
        self.num_run += hidden.shape[1]
        return super().step(items, hidden, positions)


class HeldEngine(ToyEngine):
    """A toy engine whose first forward lasts until it is released."""

    def __init__(self, span: Span, limit_tokens: int = 100_000) -> None:
        super().__init__(span, limit_tokens)
        self.entered, self.release = threading.Event(), threading.Event()

    def step(self, items: Any, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        self.entered.set()
        self.release.wait(60)
        return super().step(items, hidden, positions)


def calls_of(node: ToyNode) -> int:
    """Streams and calls that run at a node."""
    assert node.server is not None
    return sum(node.server._admission._peers.values())


def is_empty(node: ToyNode) -> bool:
    runner = node.host.runner
    return (node.engine.used_bytes, len(runner.queue.waiting), len(runner.holdings.tokens), node.host.num_sessions) == (0,) * 4


def our_tasks() -> list[str]:
    """Names of what runs here, but for gRPC's own tasks and the tests'."""
    tasks = [(task, getattr(task.get_coro(), "cr_code", None)) for task in asyncio.all_tasks() if not task.done()]
    return [
        task.get_name()
        for task, code in tasks
        if code and any(f"/{part}/" in code.co_filename for part in ("swarm", "node")) and "/tests/" not in code.co_filename
    ]


async def vanish(session: Session) -> None:
    """End the client's streams without a message, as its death would."""
    await session._legs.stop()
    for wire in (session._legs.current.down.wire, session._legs.current.last):
        if wire is not None:
            await wire.close()


# --- everything is given back


@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_200_sessions_that_end_at_random_leave_nothing(family: str, tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    checkpoint = open_checkpoint(Checkpoints(tmp_path)(family))
    swarm = ToySwarm(num_blocks=checkpoint.num_blocks)
    for span in (Span(0, 2), Span(2, checkpoint.num_blocks)):
        engine = choose_engine(load_span(checkpoint, span, dtype=torch.float32), 1 << 30)
        await swarm.add(HostEngines(engine), span, HopLimits(resume_s=0.3))
    first = swarm.session()
    await ask(first, (), [1], torch.randn(1, checkpoint.hidden_size))
    await first.close()
    await until(lambda: all(map(is_empty, swarm.nodes)))
    tasks, calls = our_tasks(), [calls_of(node) for node in swarm.nodes]
    fates: list[str] = []
    places = asyncio.Semaphore(12)

    async def live() -> None:
        async with places:
            fate = rng.choice(["closed", "cancelled", "vanished", "vanished in its prompt", "closed at once"])
            session = swarm.session()
            tokens = torch.randn(1, checkpoint.hidden_size).expand(rng.choice([5, 60, 400]), -1)
            if fate == "closed at once":
                opening = asyncio.create_task(session.open())
                await asyncio.sleep(rng.random() * 0.03)
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
            else:
                step = asyncio.create_task(ask(session, (), [len(tokens)], tokens, 1))
                if fate in ("closed", "vanished"):
                    await step
                else:
                    await asyncio.wait((step,), timeout=rng.random() * 0.1)
                    step.cancel()
                    await asyncio.gather(step, return_exceptions=True)
            if fate.startswith("vanished"):
                await vanish(session)
            else:
                await session.close()
            fates.append(fate)
            asyncio.current_task().set_name(fate)  # type: ignore[union-attr]

    await asyncio.gather(*(live() for _ in range(200)))
    assert len(fates) == 200 and len(set(fates)) == 5
    await until(lambda: all(map(is_empty, swarm.nodes)))
    await until(lambda: [calls_of(node) for node in swarm.nodes] == calls)
    await until(lambda: len(our_tasks()) <= len(tasks))
    for node in swarm.nodes:
        assert node.engine.mode == ("packed" if family == "llama" else "paged")
        if node.engine.mode == "paged":
            assert node.engine._pool.num_used == 0 and not node.engine._pool.keys
    await swarm.stop()
    gc.collect()
    assert not [thing for thing in gc.get_objects() if isinstance(thing, Session) and thing._legs.tasks]


async def test_a_client_that_closes_in_mid_prompt_frees_every_hop_at_once(swarm: ToySwarm) -> None:
    """16 s of compute run or wait at each hop: none of it is run after the close."""
    nodes = [await swarm.add(HostEngines(SlowEngine(span)), span) for span in (Span(0, 2), Span(2, 4))]
    session = swarm.session()
    step = asyncio.create_task(ask(session, (), [8_000], random_tokens(8_000), 1))
    await until(lambda: nodes[1].engine.used_bytes > 0)
    step.cancel()
    await session.close()
    await until(lambda: all(map(is_empty, nodes)))
    assert all(node.engine.num_run < 4_000 for node in nodes)


async def test_a_client_that_vanishes_frees_every_hop_after_a_while(swarm: ToySwarm) -> None:
    for start in (0, 2):
        await swarm.serve(start, start + 2, limits=HopLimits(resume_s=0.2))
    session = swarm.session()
    await ask(session, (), [3], random_tokens(3))
    assert all(node.engine.used_bytes == 3 for node in swarm.nodes)
    await vanish(session)
    await until(lambda: all(map(is_empty, swarm.nodes)))


async def test_a_close_does_not_overtake_the_hop_above_that_comes_instead(swarm: ToySwarm) -> None:
    """A replaced hop sends Close to the hop below while its replacement sends Open: in either order, the session continues."""
    first = await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    session, tokens = swarm.session(), random_tokens(6)
    before = await ask(session, (), [4], tokens[:4])
    await swarm.serve(0, 2)
    await first.host.stop()
    after = await ask(session, (), [2], tokens[4:])
    expected = torch.stack(reference(list(tokens), [(0, 2), (2, 4)]))
    assert torch.allclose(torch.cat([before, after]), expected) and session.replaced >= 1
    await session.close()
    await until(lambda: is_empty(swarm.nodes[1]) and is_empty(swarm.nodes[2]))


# --- a node at its limit


async def test_a_newcomer_is_served_by_a_replica_while_a_full_node_s_device_is_busy(swarm: ToySwarm) -> None:
    full, holder = await swarm.add(HostEngines(HeldEngine(Span(0, 4), limit_tokens=100)), Span(0, 4)), swarm.session()
    holding = asyncio.create_task(ask(holder, (), [50], random_tokens(50)))
    await until(full.engine.entered.is_set)
    spare, other = await swarm.serve(0, 4), ToySwarm()
    other.nodes += swarm.nodes
    newcomer, tokens = other.session(), random_tokens(98)
    output = await ask(newcomer, (), [98], tokens)
    assert torch.allclose(output, torch.stack(reference(list(tokens), [(0, 4)]))) and not holding.done()
    assert newcomer.route[0].peer == spare.identity.peer_id
    full.engine.release.set()
    await holding
    await asyncio.gather(holder.close(), newcomer.close())
    await other.pool.close()


async def test_a_new_session_is_refused_before_it_waits_in_the_queue(swarm: ToySwarm) -> None:
    node = await swarm.add(HostEngines(HeldEngine(Span(0, 4), limit_tokens=100)), Span(0, 4))
    holder = swarm.session()
    holding = asyncio.create_task(ask(holder, (), [50], random_tokens(50)))
    await until(node.engine.entered.is_set)
    newcomer = swarm.session(route_timeout_s=0.3)
    with pytest.raises(Exception, match="no memory for 98 more tokens"):
        await ask(newcomer, (), [98], random_tokens(98))
    assert not holding.done()
    node.engine.release.set()
    await holding
    await asyncio.gather(holder.close(), newcomer.close())


async def test_a_node_without_a_place_for_one_more_session_refuses_and_a_replica_serves(swarm: ToySwarm) -> None:
    full = await swarm.serve(0, 4, limits=HopLimits(max_sessions=0))
    session = swarm.session()
    opening = asyncio.create_task(ask(session, (), [2], tokens := random_tokens(2)))
    await until(lambda: isinstance(swarm.router.experience.blame.last_cause, OverloadedError))
    spare = await swarm.serve(0, 4)
    assert torch.allclose(await opening, torch.stack(reference(list(tokens), [(0, 4)])))
    assert full.engine.forwards == 0 and spare.engine.forwards == 1
    await session.close()


async def test_if_memory_is_short_the_client_that_holds_most_gives_way(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4, limit_tokens=100)
    greedy = [swarm.session() for _ in range(2)]
    for session in greedy:
        await ask(session, (), [40], random_tokens(40))
        hurry(session, 0.3)
    other = ToySwarm()
    other.nodes.append(node)
    modest = other.session(route_timeout_s=3.0)
    with contextlib.suppress(Exception):
        await ask(modest, (), [30], random_tokens(30))
    assert node.engine.used_bytes == 80  # it got nothing, and is remembered
    with pytest.raises(Exception, match="more than your share"):
        await ask(greedy[0], (), [2], random_tokens(2))
    await until(lambda: node.engine.used_bytes == 40)
    again = other.session()
    other.router.experience.blame = type(other.router.experience.blame)()
    tokens = random_tokens(30)
    assert torch.allclose(await ask(again, (), [30], tokens), torch.stack(reference(list(tokens), [(0, 4)])))
    await asyncio.gather(*(session.close() for session in (*greedy, modest, again)))
    await until(lambda: is_empty(node))
    await other.pool.close()


async def test_a_session_s_priority_reaches_every_hop(swarm: ToySwarm) -> None:
    seen: list[int] = []
    for start in (0, 2):
        node = await swarm.serve(start, start + 2)
        submit = node.host.runner.submit

        def note(request: Request, submit: Callable[[Request], Pending] = submit) -> Pending:
            if isinstance(request, Step):
                seen.append(request.spec.priority)
            return submit(request)

        node.host.runner.submit = note  # type: ignore[method-assign]
    session = Session(swarm.router, Links(swarm.pool), swarm.identity, SessionConfig(priority=-7))
    await ask(session, (), [2], random_tokens(2))
    assert seen == [-7, -7]
    await session.close()
