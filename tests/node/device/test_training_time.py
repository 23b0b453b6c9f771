"""Training on the device: steps go first, and training has its share."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.device.memory import Memory
from node.device.thread import Device, DeviceConfig
from node.device.training_time import Priority, TrainingTime
from node.device.work import Clear, HeldSequences, Task
from protocols.errors import NonFiniteGradientError, OverloadedError
from protocols.ids import PeerId, SessionId, Span
from tests.node.device.simulated import Chat, Queue, Swarm, p99
from tests.node.device.test_several_hosts import TimedEngine, answers, rows_of, runner_on
from tests.swarm.inference.toy import WIDTH, ToyEngine, fresh_seed, reference

MS = {Priority.UPDATE: 5.0, Priority.BACKWARD: 20.0, Priority.FORWARD: 10.0}


# --- pure


def test_a_task_waits_for_a_decode_that_is_due_before_its_end() -> None:
    time = TrainingTime(share=0.1, expected_ms=MS)
    for due_s, begins in (([], True), ([0.03], True), ([0.015], False), ([0.5, 0.001], False)):
        assert time.may_begin(Priority.BACKWARD, 0.0, is_step_ready=False, due_s=due_s) is begins
    assert not time.may_begin(Priority.BACKWARD, 0.0, is_step_ready=True, due_s=[])


def test_a_task_is_owed_once_its_share_of_the_wait_is_as_long_as_itself() -> None:
    time = TrainingTime(share=0.1, expected_ms=MS)
    assert time.wait_s(Priority.BACKWARD) == pytest.approx(0.2)
    assert not time.since(0.199, is_waiting=True).is_owed(Priority.BACKWARD)
    owed = time.since(0.2001, is_waiting=True)
    assert owed.may_begin(Priority.BACKWARD, 0.2001, is_step_ready=True, due_s=[0.0])
    assert not owed.with_task(Priority.BACKWARD, 30.0, was_owed=True).since(0.2101, is_waiting=True).owed_ms > -8
    assert TrainingTime(share=0.0, expected_ms=MS).since(1e6, is_waiting=True).owed_ms == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.booleans(), st.floats(0, 500)), max_size=30), st.floats(0, 1))
def test_no_more_than_two_tasks_are_ever_owed(turns: list[tuple[float, bool, bool, float]], share: float) -> None:
    time, now_s, longest_ms = TrainingTime(share=share), 0.0, max([1.0, *(ms for *_, ms in turns)])
    for wait_s, is_waiting, is_run, ms in turns:
        now_s += wait_s
        time = time.since(now_s, is_waiting=is_waiting)
        if is_run:
            time = time.with_task(Priority.FORWARD, ms, was_owed=time.is_owed(Priority.FORWARD))
        assert time.owed_ms <= 2 * longest_ms
        assert is_waiting or time.owed_ms <= 0


# --- in virtual time


def cost_ms(rows: int, tokens: int) -> float:
    return 4.0 + rows + 0.5 * tokens


def trained_beside(chats: list[Chat], until_s: float, *kinds: Priority, num_hosts: int = 1) -> Swarm:
    """A device with these chats, on which a task of each kind always waits."""
    swarm = Swarm(1, cost_ms, more=[cost_ms] * (num_hosts - 1))
    swarm.task_ms = MS
    for kind in kinds:
        swarm.train(0, kind)
    swarm.run(chats, until_s)
    return swarm


def trained_s(swarm: Swarm) -> float:
    return sum(MS[kind] for _, kind in swarm.trained) / 1e3


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_a_saturated_device_trains_for_its_share_and_a_token_waits_for_one_task(num_hosts: int) -> None:
    alone, beside = ([Chat(client=f"c{n}", think_s=0.0, host=n % num_hosts) for n in range(8)] for _ in range(2))
    Swarm(1, cost_ms, more=[cost_ms] * (num_hosts - 1)).run(alone, until_s=10.0)
    swarm = trained_beside(beside, 10.0, Priority.FORWARD, num_hosts=num_hosts)
    assert trained_s(swarm) == pytest.approx(1.0, rel=0.2)
    gaps, quiet = [gap for chat in beside for gap in chat.gaps_s()], [gap for chat in alone for gap in chat.gaps_s()]
    assert max(gaps) <= max(quiet) + 2 * MS[Priority.FORWARD] / 1e3 and sum(len(chat.done_s) for chat in beside) > 0.8 * sum(
        len(chat.done_s) for chat in alone
    )


def test_training_fills_gaps_that_are_long_enough_and_delays_no_token() -> None:
    """A chat whose client, or whose other hops, take 30 ms: two forwards fit into each gap."""
    chat = Chat(client="c", think_s=0.03)
    swarm = trained_beside([chat], 10.0, Priority.FORWARD)
    assert trained_s(swarm) > 4.0
    alone = Chat(client="c", think_s=0.03)
    Swarm(1, cost_ms).run([alone], until_s=10.0)
    assert p99(chat.gaps_s()) < p99(alone.gaps_s()) + 0.002 + MS[Priority.FORWARD] / 1e3 * 0.5


def test_a_device_without_sessions_only_trains_and_owes_nothing_when_one_comes() -> None:
    chats = [Chat(client=f"c{n}", think_s=0.0, begin_s=2.0) for n in range(4)]
    swarm = trained_beside(chats, 2.5, Priority.FORWARD)
    idle = [at_s for at_s, _ in swarm.trained if at_s <= 2.0]
    assert len(idle) * MS[Priority.FORWARD] / 1e3 > 1.95
    assert (len(swarm.trained) - len(idle)) * MS[Priority.FORWARD] / 1e3 < 0.5 * 0.1 + 3 * MS[Priority.FORWARD] / 1e3


def test_updates_go_before_backwards_and_these_before_forwards() -> None:
    queue = Queue(100)
    for kind in (Priority.FORWARD, Priority.BACKWARD, Priority.FORWARD, Priority.UPDATE):
        queue.scheduler.add_task(Task(function=lambda: None, priority=kind))
    taken = []
    while (decision := queue.poll()).task is not None:
        taken.append(decision.task.priority)
        queue.scheduler.finished_task(decision, 1.0)
    assert taken == [Priority.UPDATE, Priority.BACKWARD, Priority.FORWARD, Priority.FORWARD]


def test_a_clear_does_not_wait_for_training() -> None:
    queue = Queue(100)
    queue.scheduler.add_task(Task(function=lambda: None, priority=Priority.UPDATE))
    clearing = Clear(session=HeldSequences(SessionId(bytes(16)), PeerId("a")))
    queue.submit(clearing)
    decision = queue.poll()
    assert [pending.request for _, pending in decision.changes] == [clearing] and decision.task is not None


# --- on a real thread


async def test_a_function_runs_on_the_device_without_a_host_and_its_outcome_comes_back() -> None:
    device = Device()
    names = [await device.run(lambda: threading.current_thread(), Priority.FORWARD) for _ in range(3)]
    assert {thread.name for thread in names} == {"device"} and len(set(names)) == 1, "each task got a thread of its own"

    def fail() -> None:
        raise NonFiniteGradientError("NaN in a gradient")

    with pytest.raises(NonFiniteGradientError, match="NaN"):
        await device.run(fail, Priority.BACKWARD)
    with pytest.raises(ZeroDivisionError):
        await device.run(lambda: 1 // 0, Priority.UPDATE)
    assert await device.run(lambda: 7, Priority.UPDATE) == 7


async def test_a_caller_that_is_cancelled_before_its_function_began_takes_it_out_of_the_queue() -> None:
    device, has_begun, release, ran = Device(), threading.Event(), threading.Event(), []

    def hold() -> str:
        has_begun.set()
        release.wait(60)
        return "held"

    first = asyncio.create_task(device.run(hold, Priority.UPDATE))
    await asyncio.to_thread(has_begun.wait, 60)
    second = asyncio.create_task(device.run(lambda: ran.append(2), Priority.FORWARD))
    third = asyncio.create_task(device.run(lambda: ran.append(3), Priority.FORWARD))
    await asyncio.sleep(0)
    first.cancel()  # it has begun: it runs to its end
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    release.set()
    await third
    assert ran == [3]


async def test_what_a_task_made_is_freed_once_its_caller_drops_it() -> None:
    device = Device()
    made = await device.run(lambda: torch.ones(3), Priority.FORWARD)
    gone = weakref.ref(made)
    del made
    await device.run(lambda: None, Priority.FORWARD)
    assert gone() is None


async def test_too_many_tasks_are_refused() -> None:
    queue = Queue(100, max_waiting=2)
    for _ in range(2):
        queue.scheduler.add_task(Task(function=lambda: None, priority=Priority.FORWARD))
    with pytest.raises(OverloadedError, match="the limit"):
        queue.scheduler.add_task(Task(function=lambda: None, priority=Priority.UPDATE))


async def test_two_hosts_serve_exactly_while_training_runs_between_their_steps() -> None:
    fresh_seed()
    log: list[tuple[TimedEngine, float]] = []
    device = Device(config=DeviceConfig(train_share=0.3))
    runners = [runner_on(device, TimedEngine(1.0, log)) for _ in range(2)]
    sessions = [rows_of(runner, f"client {number}") for runner in runners for number in range(2)]
    tokens = [torch.rand(30, WIDTH) for _ in sessions]
    inside, num_tasks, is_over = [0], [0], asyncio.Event()

    def task() -> None:
        served = len(log)
        inside[0] += 1
        threading.Event().wait(0.001)
        assert len(log) == served, "a forward ran beside the task"
        num_tasks[0] += 1

    async def train() -> None:
        while not is_over.is_set():
            await device.run(task, Priority.BACKWARD)

    training = [asyncio.create_task(train()) for _ in range(6)]  # some always wait, also while this thread is late
    outputs = await asyncio.gather(*(answers(rows, each) for rows, each in zip(sessions, tokens, strict=True)))
    during = num_tasks[0]
    is_over.set()
    await asyncio.gather(*training)
    for output, each in zip(outputs, tokens, strict=True):
        assert torch.allclose(output, torch.stack(reference(list(each), [(0, 4)])), atol=1e-5)
    assert during >= 3, "nothing was trained beside the sessions"
    for rows in sessions:
        await rows.clear()
    for runner in runners:
        await runner.stop()


async def test_hosts_come_and_go_on_a_device_that_trains() -> None:
    device = Device(Memory())
    runner = runner_on(device, ToyEngine(Span(0, 4)))
    await device.run(lambda: None, Priority.UPDATE)
    await runner.stop()
    assert await device.run(lambda: 3, Priority.UPDATE) == 3
    again = runner_on(device, ToyEngine(Span(0, 4)))
    assert (await rows_of(again, "a").step((), [1], torch.rand(1, WIDTH), None)).values.shape == (1, WIDTH)
    await again.stop()
