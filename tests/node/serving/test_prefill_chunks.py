"""A step in prefill chunks gives what the whole step gives.

Its output, its operations on sequences, its refusals, and what its cancelling leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.device.thread import Device
from node.engines.engine import choose_engine
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import CacheFullError, DeadlineError
from protocols.ids import PeerId, SessionId, Span
from protocols.inference import Crop, Repeat
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from tests.families import Checkpoints
from tests.node.serving.test_runner import Engine, expected, rows_of, step
from tests.swarm.inference.toy import WIDTH
from tests.virtual_time import Shifted

BUDGET = 8


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    runner = Runner(Engine(), budget_tokens=BUDGET)  # type: ignore[arg-type]
    runner.start()
    yield runner
    runner.engine.gate.set()  # type: ignore[attr-defined]
    await runner.stop()


async def test_prefill_chunks_make_the_step_and_others_run_in_between(runner: Runner) -> None:
    engine: Engine = runner.engine  # type: ignore[assignment]
    engine.gate.clear()
    reader, chat = rows_of(runner), rows_of(runner)
    prompt, token = torch.rand(50, WIDTH), torch.rand(1, WIDTH)
    reading = asyncio.create_task(step(reader, prompt))
    await asyncio.to_thread(engine.entered.wait, 10)
    chatting = asyncio.create_task(step(chat, token))
    order: list[asyncio.Task[Tensor]] = []
    for task in (reading, chatting):
        task.add_done_callback(order.append)
    await asyncio.sleep(0)
    engine.gate.set()
    assert torch.allclose(await chatting, expected(token))
    assert torch.allclose(await reading, expected(prompt))
    assert order[0] is chatting and runner.num_forwards >= 7
    assert reader.held.num_tokens == 50


async def test_operations_and_positions_of_a_step_in_prefill_chunks(runner: Runner) -> None:
    rows, whole = rows_of(runner), rows_of(runner)
    tokens, more, places = torch.rand(3, WIDTH), torch.rand(40, WIDTH), torch.randperm(40)
    await step(rows, tokens)
    before = runner.num_forwards
    pieces = (await rows.step((Crop(1), Repeat(2)), [30, 10], more, places)).values
    assert runner.num_forwards - before >= 5
    runner.queue.budget_tokens = 1_024
    await step(whole, tokens)
    assert torch.equal(pieces, (await whole.step((Crop(1), Repeat(2)), [30, 10], more, places)).values)
    assert [row.length for row in rows.held.sequences] == [32, 12]


async def test_a_prompt_that_does_not_fit_is_refused_before_its_first_prefill_chunk(runner: Runner) -> None:
    runner.device.memory.limit_bytes = 45
    rows, forwards = rows_of(runner), runner.num_forwards
    with pytest.raises(CacheFullError):
        await step(rows, torch.rand(50, WIDTH))
    assert runner.num_forwards == forwards and runner.engine.used_bytes == 0 and rows.held.sequences == []


async def test_a_step_cancelled_between_its_prefill_chunks_runs_no_further(runner: Runner) -> None:
    engine: Engine = runner.engine  # type: ignore[assignment]
    engine.gate.clear()
    rows = rows_of(runner)
    reading = asyncio.create_task(step(rows, torch.rand(4_000, WIDTH)))
    await asyncio.to_thread(engine.entered.wait, 10)
    reading.cancel()
    clearing = asyncio.create_task(rows.clear())
    await asyncio.sleep(0)
    engine.gate.set()
    await clearing
    assert reading.cancelled() and engine.used_bytes == 0 and runner.num_forwards == 1 and not runner.queue.waiting


async def test_a_deadline_ends_a_step_between_its_prefill_chunks() -> None:
    time = Shifted()
    engine = Engine()
    runner = Runner(engine, budget_tokens=BUDGET, device=Device(clock=time.clock()))  # type: ignore[arg-type]
    runner.start()
    engine.gate.clear()
    rows = rows_of(runner)
    loop = asyncio.get_running_loop()
    reading = asyncio.create_task(rows.step((), [50], torch.rand(50, WIDTH), None, expires_s=loop.time() + 3_600))
    await asyncio.to_thread(engine.entered.wait, 10)
    time.ahead_s = 3_601
    engine.gate.set()
    with pytest.raises(DeadlineError):
        await reading
    assert engine.used_bytes == 0 and rows.held.sequences == []
    await runner.stop()


@pytest.mark.parametrize("family", ["llama", "bloom", "mamba"])
async def test_prefill_chunks_are_exact_on_real_blocks(family: str, tmp_path: Path) -> None:
    span = load_span(open_checkpoint(Checkpoints(tmp_path)(family)), Span(0, 5), dtype=torch.float32)
    hidden = torch.randn(90, span.hidden_size)
    outputs: list[Tensor] = []
    for budget in (1_024, 16):
        engine = choose_engine(span, 1 << 30)
        runner = Runner(engine, budget_tokens=budget)
        runner.start()
        rows = SessionSequences(runner, SessionId(bytes(16)), PeerId("client"))
        steps = [await rows.step((), [80], hidden[:80], None), await rows.step((), [10], hidden[80:], None)]
        outputs.append(torch.cat([one.values for one in steps]))
        forwards = runner.num_forwards
        assert (forwards >= 6) == (budget == 16 and engine.chunking == "always")
        await rows.clear()
        assert engine.used_bytes == 0
        await runner.stop()
    scale = outputs[0].abs().max()
    assert (outputs[0] - outputs[1]).abs().max() <= 5e-5 * scale
