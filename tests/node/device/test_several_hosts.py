"""Several hosts on one device: exact, equal in time, within one budget."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from node.device.memory import Memory
from node.device.pending import Chunk, Pending
from node.device.thread import Device
from node.device.training_time import Priority
from node.device.work import HeldSequences, Step
from node.serving import executor
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import CacheFullError, InternalError, OverloadedError
from protocols.ids import PeerId, SessionId, Span
from swarm.clock import SYSTEM
from tests.node.device.simulated import Chat, Swarm, p99
from tests.swarm.inference.toy import WIDTH, ToyEngine, ToyRow, fresh_seed, reference, until

# --- in virtual time


def cost_ms(rows: int, tokens: int) -> float:
    return 4.0 + rows + 0.5 * tokens


def dear_ms(rows: int, tokens: int) -> float:
    """A model three times as large."""
    return 3 * cost_ms(rows, tokens)


@pytest.mark.parametrize("num_clients", [1, 4])
def test_two_models_get_the_same_time_whatever_a_forward_of_each_costs(num_clients: int) -> None:
    """Four sessions each, of one client or of four; the other model's are always of four."""
    chats = [Chat(client=f"a{number % num_clients}") for number in range(4)]
    others = [Chat(client=f"b{number}", host=1) for number in range(4)]
    swarm = Swarm(1, cost_ms, more=[dear_ms])
    swarm.run([*chats, *others], until_s=10.0)
    assert swarm.served_s[0] / swarm.served_s[1] == pytest.approx(1.0, abs=0.2) and sum(swarm.served_s) > 9.0
    for crowd in (chats, others):
        counts = sorted(len(chat.done_s) for chat in crowd)
        assert counts[0] >= 0.8 * counts[-1] > 0


def test_prompts_of_one_model_do_not_stall_chats_of_another() -> None:
    alone, disturbed = ([Chat(client=f"c{number}", host=1) for number in range(4)] for _ in range(2))
    Swarm(1, cost_ms, more=[cost_ms]).run(alone, until_s=3.0)
    prompt = Chat(client="reader", prompt=2_000, max_tokens=0, begin_s=0.5)
    swarm = Swarm(1, cost_ms, more=[cost_ms])
    swarm.run([*disturbed, prompt], until_s=8.0)
    during = [b - a for c in disturbed for a, b in zip(c.done_s, c.done_s[1:], strict=False) if 0.5 < b < prompt.done_s[0]]
    assert len(during) > 100  # it was not over at once
    assert p99(during) <= 3 * p99([gap for chat in alone for gap in chat.gaps_s()])
    assert prompt.done_s[0] < 0.5 + 5 * 2_000 * 0.0005  # half of the device was its own


def test_an_idle_model_accumulates_no_time() -> None:
    chats = [Chat(client=f"a{number}") for number in range(4)]
    late = [Chat(client=f"b{number}", host=1, begin_s=5.0) for number in range(4)]
    swarm = Swarm(1, cost_ms, more=[cost_ms])
    swarm.run([*chats, *late], until_s=5.2)
    recent = [sum(at > 5.05 for at in chat.done_s) for chat in (*chats, *late)]
    assert min(recent[:4]) >= 0.5 * max(recent[4:])


# --- on a real thread


class Hands:
    """A clock that only forwards move: how long they take does not depend on the machine. Each look takes a microsecond."""

    def __init__(self) -> None:
        self.s = 0.0

    def look(self) -> float:
        self.s += 1e-6
        return self.s


class TimedEngine(ToyEngine):
    """A toy engine whose forward takes `ms`, and is noted in the device's log."""

    hands: Hands | None = None
    """None: it really takes as long."""

    def __init__(self, ms: float, log: list[tuple[TimedEngine, float]], limit_tokens: int = 100_000) -> None:
        super().__init__(Span(0, 4), limit_tokens)
        self._ms, self._log = ms, log

    def step(self, items: Sequence[tuple[ToyRow, int]], hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        output = super().step(items, hidden, positions)
        if self.hands is None:
            time.sleep(self._ms / 1e3)
        else:
            self.hands.s += self._ms / 1e3
        self._log.append((self, self._ms / 1e3))
        return output


def runner_on(device: Device, engine: ToyEngine) -> Runner:
    runner = Runner(engine, device=device)  # type: ignore[arg-type]
    runner.start()
    return runner


def rows_of(runner: Runner, client: str) -> SessionSequences:
    return SessionSequences(runner, SessionId(bytes(16)), PeerId(client))


async def answers(rows: SessionSequences, tokens: Tensor) -> Tensor:
    """Sends all steps at once, so that the session always has a step waiting."""
    outputs = await asyncio.gather(*(rows.step((), [1], token[None], None) for token in tokens))
    return torch.cat([output.values for output in outputs])


async def test_two_hosts_of_four_sessions_each_are_exact_and_share_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_seed()
    log: list[tuple[TimedEngine, float]] = []
    hands = Hands()
    monkeypatch.setattr(TimedEngine, "hands", hands)
    monkeypatch.setattr(executor, "time", SimpleNamespace(perf_counter=hands.look))
    device = Device(clock=replace(SYSTEM, now_s=hands.look))
    engines = [TimedEngine(2.0, log), TimedEngine(6.0, log)]
    runners = [runner_on(device, engine) for engine in engines]
    sessions = [rows_of(runner, f"client {number}") for runner in runners for number in range(4)]
    tokens = [torch.rand(30 if rows._runner is runners[1] else 90, WIDTH) for rows in sessions]
    may_go = threading.Event()
    holding = asyncio.create_task(device.run(lambda: may_go.wait(60), Priority.FORWARD))
    answering = [asyncio.create_task(answers(rows, each)) for rows, each in zip(sessions, tokens, strict=True)]
    await until(lambda: [len(runner.queue.waiting) for runner in runners] == [4 * 90, 4 * 30])
    may_go.set()
    outputs = await asyncio.gather(*answering)
    assert await holding, "the device was held until all had a step waiting"
    for output, each in zip(outputs, tokens, strict=True):
        assert torch.allclose(output, torch.stack(reference(list(each), [(0, 4)])), atol=1e-5)
    assert all(max(engine.batches) == 4 for engine in engines), "sessions never shared a forward"
    while log[-1][0] is log[-2][0]:  # one host has nothing more to do: the other one has the device to itself
        log.pop()
    served_s = [sum(seconds for engine, seconds in log if engine is one) for one in engines]
    assert len(log) > 40 and served_s[0] / served_s[1] == pytest.approx(1.0, abs=0.2)
    await asyncio.gather(*(rows.clear() for rows in sessions))
    assert device.memory.used_bytes == 0
    for runner in runners:
        await runner.stop()


async def test_two_hosts_share_one_budget() -> None:
    device = Device(Memory(limit_bytes=100))
    first, second = (runner_on(device, ToyEngine(Span(0, 4), limit_tokens=100)) for _ in range(2))
    rows, others = rows_of(first, "a"), rows_of(second, "a")
    await rows.step((), [80], torch.rand(80, WIDTH), None)
    with pytest.raises(CacheFullError):
        await others.step((), [30], torch.rand(30, WIDTH), None)
    await rows.clear()
    await others.step((), [40], torch.rand(40, WIDTH), None)
    assert device.memory.used_bytes == 40
    greedy, modest = rows_of(first, "a"), rows_of(second, "b")
    await modest.step((), [40], torch.rand(40, WIDTH), None)
    with pytest.raises(CacheFullError, match="more than your share"):  # with what it holds at the other host
        await greedy.step((), [15], torch.rand(15, WIDTH), None)
    await first.stop()
    await second.stop()


class FailingHost:
    """Fails after each forward and before its steps are settled, as if there was no memory for the outputs."""

    def __init__(self, device: Device) -> None:
        self._scheduler, self.num_forwards = device.scheduler, 0
        self.queue = device.attach(self, budget_tokens=4)

    def forward(self, chunks: Sequence[Chunk]) -> None:
        self.num_forwards += 1
        self._scheduler.finished(self.queue, chunks)
        raise MemoryError

    def change(self, pending: Pending) -> None: ...

    def warm_up(self) -> bool:
        return False


async def test_a_step_whose_forward_failed_is_not_run_to_its_end_and_other_hosts_go_on() -> None:
    device = Device()
    failing, other = FailingHost(device), runner_on(device, ToyEngine(Span(0, 4)))
    session = HeldSequences(SessionId(bytes(16)), PeerId("a"))
    prompt = device.submit(failing.queue, Step(session=session, counts=[40], values=torch.rand(40, WIDTH)))
    assert prompt.future is not None
    with pytest.raises(InternalError, match="MemoryError"):
        await prompt.future
    tokens = torch.rand(5, WIDTH)
    assert torch.allclose(await answers(rows_of(other, "b"), tokens), torch.stack(reference(list(tokens), [(0, 4)])), atol=1e-5)
    assert failing.num_forwards == 1 and not failing.queue.waiting
    await device.detach(failing.queue)
    await other.stop()


async def test_a_host_that_leaves_ends_its_own_steps_only_and_the_thread_goes_with_the_last() -> None:
    device = Device()
    first, second = (runner_on(device, ToyEngine(Span(0, 4))) for _ in range(2))
    rows, tokens = rows_of(second, "b"), torch.rand(40, WIDTH)
    answering = asyncio.create_task(answers(rows, tokens))
    await first.stop()
    with pytest.raises(OverloadedError, match="leaving"):
        await rows_of(first, "a").step((), [1], torch.rand(1, WIDTH), None)
    assert torch.allclose(await answering, torch.stack(reference(list(tokens), [(0, 4)])), atol=1e-5)
    await second.stop()
    again = runner_on(device, ToyEngine(Span(0, 4)))
    assert (await rows_of(again, "a").step((), [1], tokens[:1], None)).values.shape == (1, WIDTH)
    await again.stop()
