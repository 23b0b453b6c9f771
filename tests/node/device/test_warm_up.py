"""A device warms up its hosts, and again if asked."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import torch

from node.device import thread
from node.device.thread import Device, DeviceConfig
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.ids import PeerId, SessionId, Span
from tests.logged import logged
from tests.swarm.inference.toy import WIDTH, ToyEngine

HOSTED, PART = Span(0, 4), Span(1, 3)


class Capturing(ToyEngine):
    """An engine with `num_graphs` graphs to capture, each in `slow_s` seconds."""

    now_s = 0.0
    """As the device's thread reads it."""

    def __init__(self, span: Span, num_graphs: int, slow_s: float = 0.0) -> None:
        super().__init__(span)
        self.num_left, self.slow_s, self.num_asked = num_graphs, slow_s, 0
        self.is_asked = threading.Event()
        """Set when a call to `warm_up` leaves no graph to capture."""

    def warm_up(self) -> bool:
        Capturing.now_s += self.slow_s
        self.num_asked += 1
        self.num_left = max(0, self.num_left - 1)
        if not self.num_left:
            self.is_asked.set()
        return self.num_left > 0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up takes as long as it says, however late this process is."""
    monkeypatch.setattr(thread, "time", SimpleNamespace(perf_counter=lambda: Capturing.now_s))


async def asked(engine: Capturing) -> None:
    assert await asyncio.to_thread(engine.is_asked.wait, 30)
    engine.is_asked.clear()


@asynccontextmanager
async def runner_of(whole: Capturing, part: Capturing, longest_s: float = 10.0) -> AsyncIterator[Runner]:
    config = DeviceConfig(warm_up_after_s=0.0, warm_up_beside_s=0.0, longest_warm_up_s=longest_s)
    runner = Runner(whole, make_part=lambda span, limit_bytes: part, device=Device(config=config))  # type: ignore[arg-type]
    runner.start()
    try:
        yield runner
    finally:
        await runner.stop()


async def test_a_host_that_was_warm_captures_the_graphs_of_a_part_too() -> None:
    whole, part = Capturing(HOSTED, num_graphs=3), Capturing(PART, num_graphs=2)
    async with runner_of(whole, part) as runner:
        await asked(whole)
        assert whole.num_asked == 3
        rows = SessionSequences(runner, SessionId(bytes(16)), PeerId("client"), part=PART)
        await rows.step((), [1], torch.zeros(1, WIDTH), None)
        await asked(part)
        assert part.num_left == 0
        await rows.clear()


async def test_a_host_warms_up_again_if_it_is_asked_to() -> None:
    whole = Capturing(HOSTED, num_graphs=1)
    async with runner_of(whole, whole) as runner:
        await asked(whole)
        whole.num_left = 3  # its module was changed
        runner.device.scheduler.warm_up_again(runner.queue)
        await asked(whole)
        assert whole.num_asked == 4


async def test_a_host_without_memory_for_a_warm_up_is_asked_again_once_a_session_has_ended() -> None:
    class Full(Capturing):
        is_full = True

        def warm_up(self) -> bool:
            if self.is_full:
                self.is_asked.set()
                return False
            return super().warm_up()

    whole = Full(HOSTED, num_graphs=3)
    async with runner_of(whole, whole) as runner:
        rows = SessionSequences(runner, SessionId(bytes(16)), PeerId("client"))
        await rows.step((), [1], torch.zeros(1, WIDTH), None)
        await asked(whole)
        assert whole.num_left == 3
        whole.is_full = False
        await rows.clear()
        await asked(whole)
        assert whole.num_left == 0


async def test_a_host_that_warms_up_too_slowly_is_never_asked_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    slow, other = Capturing(HOSTED, num_graphs=9, slow_s=0.5), Capturing(HOSTED, num_graphs=1)
    async with runner_of(slow, slow, longest_s=0.4) as runner:
        beside = Runner(other, device=runner.device)  # type: ignore[arg-type]
        beside.start()
        await asked(other)
        for _ in range(2):
            runner.device.scheduler.warm_up_again(runner.queue)
            runner.device.scheduler.warm_up_again(beside.queue)
            await asked(other)
        assert slow.num_asked == 1
        assert [line for line in logged(caplog, thread.log) if "limit 0.4 s" in line]
        await beside.stop()
