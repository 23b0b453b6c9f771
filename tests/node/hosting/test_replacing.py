"""Weights change under a serving node: each answer is of one version."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from node.engines.engine import choose_engine
from node.serving import unit_engines
from protocols.errors import BadRequestError, ModelNotSupportedError, NoRouteError
from protocols.ids import Span
from protocols.units import Blocks
from tests.families import make_checkpoint
from tests.node.hosting.versions import PLENTY, Answer, Model, Swarm, judge, swarm_of

FIRST, LAST = Span(0, 2), Span(2, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(make_checkpoint("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture
async def swarm(model: Model) -> AsyncIterator[Swarm]:
    async with swarm_of(model) as swarm:
        yield swarm


def prompts() -> Iterator[list[int]]:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    while True:
        yield [draw.randrange(64) for _ in range(draw.randrange(3, 9))]


async def test_no_answer_mixes_two_versions(swarm: Swarm, model: Model) -> None:
    """One of two replicas has memory for one version only: its sessions continue at the other, which keeps the old version for a while."""
    nodes = [await swarm.add(FIRST, free_bytes=0), await swarm.add(LAST)]
    last, is_over, answers = 2, asyncio.Event(), list[Answer]()

    async def asks(drawn: Iterator[list[int]]) -> None:
        while not is_over.is_set():
            answers.append(await swarm.ask(next(drawn), 10, pause_s=0.01))

    drawn = prompts()
    asking = [asyncio.create_task(asks(drawn)) for _ in range(6)]
    await swarm.until_told(0, 3)
    swarm.goes_on.clear()
    nodes += [await swarm.add(FIRST), await swarm.add(LAST)]
    for number in range(1, last + 1):
        await nodes[0].replace(number)
        swarm.goes_on.set()
        await swarm.until_told(number - 1, swarm.tokens[number - 1] + 12)
        swarm.goes_on.clear()
        for node in nodes[1:]:
            await node.replace(number)
        swarm.goes_on.set()
        await swarm.until_answered(number)
        swarm.goes_on.clear()
    is_over.set()
    swarm.goes_on.set()
    await asyncio.gather(*asking)
    verdict = judge(model, answers, last)
    print(verdict, swarm.num_lost)
    assert not verdict.mixed and verdict.shared <= 2, "by chance two versions may give the same short answer"
    assert len(verdict.by_version) == 3 and verdict.num_replaced > 0, "versions changed under sessions, and hops were lost"
    for node in nodes:
        await node.replacer.close()
        assert [host.served.weights for host in node.presence.hosts] == [model.weights(last)] and node.unit.num_readers == 1


async def test_running_sessions_finish_on_their_version_beside_the_new_one(swarm: Swarm, model: Model) -> None:
    node = await swarm.add(Span(0, 5))
    first = asyncio.create_task(swarm.ask([1, 2, 3], 24))
    await swarm.until_told(0, 4)
    swarm.goes_on.clear()
    await node.replace(1)
    assert swarm.newest() == model.weights(1) and node.unit.num_readers == 2
    swarm.goes_on.set()
    second = await swarm.ask([1, 2, 3], 24)
    verdict = judge(model, [await first, second], 1)
    assert dict(verdict.by_version) == {0: 1, 1: 1} and not verdict.mixed and not verdict.shared and not verdict.num_replaced
    assert swarm.num_lost == 0


async def test_without_memory_for_two_and_without_a_replica_a_session_is_lost_and_says_so(swarm: Swarm, model: Model) -> None:
    node = await swarm.add(Span(0, 5), free_bytes=0)
    places = {name: tensor.data_ptr() for name, tensor in node.unit._holding.tensors().items()}
    asking = asyncio.create_task(swarm.ask([5, 6], 40))
    await swarm.until_told(0, 4)
    swarm.goes_on.clear()
    router = swarm._routers[model.weights(0)]
    await node.replace(1)
    swarm.goes_on.set()
    answer = await asking
    assert (answer.number, swarm.num_lost) == (1, 1) and not judge(model, [answer], 1).mixed
    assert {name: tensor.data_ptr() for name, tensor in node.unit._holding.tensors().items()} == places, "written in place"
    with pytest.raises(NoRouteError):
        await router.find(0.1)


async def test_what_does_not_fit_and_what_no_engine_runs_leave_the_node_serving(swarm: Swarm, model: Model) -> None:
    node = await swarm.add(Span(0, 5))
    name, tensor = next(iter(node.unit._holding.tensors().items()))
    for changes, words in (({"9.nothing": tensor}, "no tensor is called"), ({name: tensor[:1]}, r"got torch.float32 \[1, 64\]")):
        with pytest.raises(BadRequestError, match=words):
            await node.replacer.replace({Blocks(0, 5): changes}, model.weights(1))
    with pytest.raises(BadRequestError, match="decoder/0:2 is not hosted here"):
        await node.replacer.replace({Blocks(0, 2): {}}, model.weights(1))
    with pytest.raises(ModelNotSupportedError, match="no numbers"):
        nothing = {name: torch.full_like(tensor, torch.nan) for name, tensor in node.unit._holding.tensors().items()}
        await node.replacer.replace({Blocks(0, 5): nothing}, model.weights(1))
    before = await swarm.ask([7, 8], 6)
    assert any(tensor.dim() == 1 for tensor in nothing.values()), "the next version leaves those as they were"
    await node.replace(2)
    after = await swarm.ask([7, 8], 6)
    assert (before.number, after.number) == (0, 2) and not judge(model, [before, after], 2).mixed


async def test_a_drained_version_is_freed_before_a_serving_one_is_ended(swarm: Swarm) -> None:
    """Its modules refer to each other: it takes memory until they are collected."""
    node = await swarm.add(Span(0, 5))
    first = weakref.ref(next(tensor for tensor in node.unit._holding.tensors().values() if tensor.dim() == 2))
    gc.disable()
    try:
        await node.replace(1)
        async with asyncio.timeout(30):
            while node.unit.num_readers > 1:  # noqa: ASYNC110  (it is drained by itself)
                await asyncio.sleep(0.01)
        node.replacer._free_bytes = lambda: PLENTY if first() is None else 0
        asking = asyncio.create_task(swarm.ask([1, 2, 3], 16))
        await swarm.until_told(1, 2)
        swarm.goes_on.clear()
        await node.replace(2)
        swarm.goes_on.set()
        assert (await asking).number == 1 and swarm.num_lost == 0
    finally:
        gc.enable()


async def test_a_replacement_that_is_cancelled_is_carried_out_and_holds_nothing(
    swarm: Swarm, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await swarm.add(Span(0, 5))
    began, may_go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(*args: Any) -> object:
        loop.call_soon_threadsafe(began.set)
        assert may_go.wait(30)
        return choose_engine(*args)

    monkeypatch.setattr(unit_engines, "choose_engine", slow)
    replacing = asyncio.create_task(node.replace(1))
    await began.wait()
    replacing.cancel()
    await asyncio.wait([replacing])
    assert replacing.cancelled()
    may_go.set()
    await node.replacer.close()
    assert [host.served.weights for host in node.presence.hosts] == [model.weights(1)] and node.unit.num_readers == 1


@pytest.mark.parametrize("failing", [1, 2], ids=["of the new one", "of the draining"])
async def test_the_old_version_ends_although_it_cannot_be_announced(
    swarm: Swarm, model: Model, failing: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await swarm.add(Span(0, 5))
    own, num_told = node.announce, 0

    async def announce(*args: Any) -> None:
        nonlocal num_told
        num_told += 1
        if num_told == failing:
            raise ConnectionError("no directory")
        await own(*args)

    monkeypatch.setattr(node, "announce", announce)
    if failing == 1:
        with pytest.raises(ConnectionError, match="no directory"):
            await node.replace(1)
    else:
        await node.replace(1)
    await node.replacer.close()
    assert [host.served.weights for host in node.presence.hosts] == [model.weights(1)] and node.unit.num_readers == 1
    assert ("no directory" in caplog.text) == (failing == 2)
    assert (await swarm.ask([7, 8], 6)).number == 1
