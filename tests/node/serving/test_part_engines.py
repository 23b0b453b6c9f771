"""Engines of parts: exact beside the whole span, within one memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor

from node.engines.engine import choose_engine
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import CacheFullError, InternalError, SpanNotServedError
from protocols.ids import PeerId, SessionId, Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_parts, load_span
from tests.families import Checkpoints

HOSTED, PART, TOKENS = Span(0, 4), Span(1, 3), 14


def make_runner(path: Path, limit_bytes: int = 1 << 30) -> Runner:
    whole, parts = load_parts(open_checkpoint(path), HOSTED, dtype=torch.float32)
    runner = Runner(choose_engine(whole, limit_bytes), make_part=lambda part, limit: choose_engine(parts.cut(part), limit))
    runner.start()
    return runner


def session(runner: Runner, number: int, part: Span | None) -> SessionSequences:
    return SessionSequences(runner, SessionId(bytes([number]) * 16), PeerId("client"), part=part)


async def decode(rows: SessionSequences, hidden: Tensor) -> Tensor:
    """A prompt of five tokens, then one by one."""
    outputs = [(await rows.step((), [len(piece)], piece, None)).values for piece in (hidden[:5], *hidden[5:].split(1))]
    return torch.cat(outputs)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "bloom", "qwen3_next", "gpt_neo"])
async def test_parts_and_the_whole_are_exact_beside_each_other(tmp_path: Path, family: str) -> None:
    path = Checkpoints(tmp_path)(family)
    runner = make_runner(path)
    before = {tensor.data_ptr() for tensor in runner.engine._span.parameters()}  # type: ignore[attr-defined]
    try:
        parts = [None, PART, Span(3, 4), PART]
        sessions = [session(runner, number, part) for number, part in enumerate(parts)]
        inputs = [torch.randn(TOKENS, runner.engine.hidden_size, generator=torch.Generator().manual_seed(n)) for n in range(4)]
        outputs = await asyncio.gather(*(decode(rows, hidden) for rows, hidden in zip(sessions, inputs, strict=True)))
        for part, hidden, output in zip(parts, inputs, outputs, strict=True):
            with torch.inference_mode():
                alone = load_span(open_checkpoint(path), part or HOSTED, dtype=torch.float32)(hidden[None])[0]
            assert (output - alone).abs().max() <= 5e-5 * alone.abs().max()
        engine = sessions[1].held.engine
        assert engine is not None and engine is sessions[3].held.engine is not sessions[2].held.engine
        assert engine.forwards > 0 and engine.mode in ("packed", "paged", "serial")
        assert {tensor.data_ptr() for tensor in engine._span.layers.parameters()} <= before  # type: ignore[attr-defined]
        for rows in sessions:
            await rows.clear()
    finally:
        await runner.stop()
    assert runner.engines.used_bytes == 0  # no capture is under way any more


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt_neo"])
async def test_parts_and_the_whole_share_one_limit(tmp_path: Path, family: str) -> None:
    """The second session is refused the memory that the first has taken, whichever of the two runs the part."""
    path = Checkpoints(tmp_path)(family)
    probe = make_runner(path)
    hidden = torch.randn(64, probe.engine.hidden_size)
    await session(probe, 0, None).step((), [64], hidden, None)
    limit = probe.engines.used_bytes  # as much as 64 tokens take in all blocks
    if probe.engine.mode == "packed":
        limit //= 2  # with plenty of memory, the engine reserves 128 tokens
    await probe.stop()
    for first, second in ((None, PART), (PART, None)):
        runner = make_runner(path, limit)
        try:
            rows, others = session(runner, 1, first), session(runner, 2, second)
            await rows.step((), [48], hidden[:48], None)
            with pytest.raises(CacheFullError):
                await others.step((), [64], hidden, None)
            await others.clear()
            assert 0 < runner.engines.used_bytes <= limit
            await rows.clear()
            await others.step((), [48], hidden[:48], None)
            await others.clear()
        finally:
            await runner.stop()
        assert runner.engines.used_bytes == 0


async def test_what_no_engine_can_run_apart_is_refused_with_the_reason(tmp_path: Path) -> None:
    whole, _ = load_parts(open_checkpoint(Checkpoints(tmp_path)("llama")), HOSTED, dtype=torch.float32)

    def broken(part: Span, limit_bytes: int) -> object:
        raise ValueError("a family's own code")

    for make, error in ((None, SpanNotServedError), (broken, InternalError)):
        runner = Runner(choose_engine(whole, 1 << 20), make_part=make)  # type: ignore[arg-type]
        runner.start()
        rows = session(runner, 1, PART)
        with pytest.raises(error, match="1:3"):
            await rows.step((), [1], torch.zeros(1, 64), None)
        await rows.clear()
        await runner.stop()
