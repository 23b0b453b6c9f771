"""Operations on sequences: charged to their client, in time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from node.device import forward_size
from node.engines.engine import choose_engine
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import CacheFullError
from protocols.ids import PeerId, SessionId
from protocols.inference import Op, Repeat, Rows
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from tests.families import Checkpoints
from tests.swarm.inference.toy import WIDTH, Span, ToyEngine, until

HONEST, GREEDY = PeerId("honest"), PeerId("greedy")


def rows_of(runner: Runner, client: PeerId, number: int = 1) -> SessionSequences:
    return SessionSequences(runner, SessionId(bytes([number]) * 16), client)


async def begin(rows: SessionSequences, tokens: int) -> None:
    await rows.step((), [tokens], torch.rand(tokens, WIDTH), None)


async def test_operations_without_tokens_are_charged_to_their_client() -> None:
    runner = Runner(ToyEngine(Span(0, 4)))  # type: ignore[arg-type]
    runner.start()
    rows = rows_of(runner, GREEDY)
    await begin(rows, 100)
    accounts = runner.queue.ledger.clients
    await until(lambda: accounts.of(GREEDY) > 0)  # accounts follow the answer
    before = accounts.of(GREEDY)
    for _ in range(5):
        await rows.step([Repeat(200)], [0] * 200, torch.rand(0, WIDTH), None)
        await rows.step([Rows((0,))], [0], torch.rand(0, WIDTH), None)
    assert accounts.of(GREEDY) > before + 0.1  # 1,990 copies of a sequence
    await rows.clear()
    await runner.stop()


async def test_copies_beyond_a_client_s_share_are_refused_and_given_back() -> None:
    """Memory is short, and two clients share it: copies count as what a client holds before it brings a token for them."""
    engine = ToyEngine(Span(0, 4), limit_tokens=1_000)
    runner = Runner(engine)  # type: ignore[arg-type]
    runner.start()
    honest, greedy = rows_of(runner, HONEST, 1), rows_of(runner, GREEDY, 2)
    await begin(honest, 100)
    await begin(greedy, 100)
    with pytest.raises(CacheFullError, match="more than your share"):
        await greedy.step([Repeat(8)], [0] * 8, torch.rand(0, WIDTH), None)
    assert engine.used_bytes == 100 and runner.holdings.part_of(HONEST) == 1.0
    await begin(honest, 300)
    await runner.stop()


async def test_long_copies_rest_on_an_engine_that_copies_in_the_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There a fork only counts a reference, and the first token that is written copies the sequence: operations alone took microseconds."""
    rest_ms, rested_ms = forward_size.rest_ms, list[float]()

    def noted_ms(*arguments: Any) -> float:
        rested_ms.append(rest_ms(*arguments))
        return rested_ms[-1]

    monkeypatch.setattr(forward_size, "rest_ms", noted_ms)
    engine = choose_engine(load_span(open_checkpoint(Checkpoints(tmp_path)("llama")), Span(0, 4), dtype=torch.float32), 1 << 30)
    assert engine.mode == "packed"
    runner = Runner(engine)
    runner.start()
    chat, greedy = rows_of(runner, HONEST, 1), rows_of(runner, GREEDY, 2)

    async def step(rows: SessionSequences, counts: list[int], *ops: Op) -> None:
        await rows.step(ops, counts, torch.rand(sum(counts), engine.hidden_size), None)

    async def chats() -> None:
        while True:
            await step(chat, [1])

    for _ in range(8):
        await step(greedy, [1_000])
    talking = asyncio.create_task(chats())
    await asyncio.sleep(0.3)
    for _ in range(10):  # on a busy machine, a step of one token may have taken as long as the copies do
        await step(greedy, [1] * 30, Repeat(30))
        ended_s = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await until(lambda: GREEDY in runner.queue.rests, 1.0)  # accounts follow the answer
            break
        await step(greedy, [1], Rows((0,)))
    rests_until_s = runner.queue.rests[GREEDY]
    assert HONEST not in runner.queue.rests
    assert max(rested_ms) > 200  # nine times what the copies took
    await step(greedy, [1], Rows((0,)))
    assert time.monotonic() >= min(rests_until_s, ended_s + 1.0)
    talking.cancel()
    await asyncio.wait((talking,))
    await asyncio.gather(chat.clear(), greedy.clear())
    await runner.stop()


async def test_operations_leave_the_event_loop_alone() -> None:
    loops: list[object] = []

    class Watched(ToyEngine):
        def fork(self, row: object) -> object:  # type: ignore[override]
            loops.append(asyncio._get_running_loop())
            return super().fork(row)  # type: ignore[arg-type]

    runner = Runner(Watched(Span(0, 4)))  # type: ignore[arg-type]
    runner.start()
    rows = rows_of(runner, HONEST)
    await begin(rows, 9)
    await rows.step([Repeat(2)], [1, 1], torch.rand(2, WIDTH), None)
    assert loops == [None]  # no loop runs in the device's thread
    await rows.clear()
    await runner.stop()
