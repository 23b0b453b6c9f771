"""Kept sequences cost no open session anything, whatever comes in which order."""

from __future__ import annotations

import random
import secrets

import pytest
import torch
from torch import Tensor

from node.device.kept import NO_CLIENT
from node.serving.runner import Runner
from node.serving.session_sequences import SessionSequences
from protocols.errors import CacheFullError
from protocols.ids import PeerId, SessionId, Span
from tests.swarm.inference.toy import WIDTH, ToyEngine, reference

LIMIT = 400
"""Tokens that the device holds."""


class Session:
    """A session, with the tokens that it should hold."""

    def __init__(self, runner: Runner, client: str) -> None:
        self.sequences = SessionSequences(runner, SessionId(secrets.token_bytes(16)), PeerId(client))
        self.tokens = torch.zeros(0, WIDTH)

    async def grow(self, count: int) -> None:
        """Append tokens; what comes out is what they are computed to by themselves."""
        new = torch.rand(count, WIDTH)
        output: Tensor = (await self.sequences.step((), [count], new, None)).values
        self.tokens = torch.cat([self.tokens, new])
        assert torch.allclose(output, torch.stack(reference(list(self.tokens), [(0, 1)]))[-count:])


@pytest.mark.parametrize("_round", range(4))
async def test_open_sessions_never_miss_the_memory_of_kept_ones(_round: int) -> None:
    seed = secrets.randbelow(1 << 30)
    print("seed", seed)
    draw = random.Random(seed)
    torch.manual_seed(seed)
    runner = Runner(ToyEngine(Span(0, 1), LIMIT), token_bytes=1)  # type: ignore[arg-type]
    runner.start()
    memory, holdings = runner.device.memory, runner.holdings
    opened: list[Session] = []
    kept: list[Session] = []
    num_forked = num_freed = 0
    for _ in range(250):
        choice = draw.random()
        held = sum(len(session.tokens) for session in opened)
        if choice < 0.35 and held < LIMIT // 4:
            session = Session(runner, draw.choice("ab"))
            await session.grow(draw.randint(1, 30))
            opened.append(session)
        elif choice < 0.6 and opened and held < LIMIT // 3:
            await draw.choice(opened).grow(draw.randint(1, 8))
        elif choice < 0.8 and opened:
            session = opened.pop(draw.randrange(len(opened)))
            await session.sequences.keep()
            kept.append(session)
        elif choice < 0.9 and kept and held < LIMIT // 4:
            source, twin = draw.choice(kept), Session(runner, draw.choice("ab"))
            count = draw.randint(1, len(source.tokens))
            try:
                await twin.sequences.fork(source.sequences, count)
            except CacheFullError:
                assert not source.sequences.holds_tokens and not twin.sequences.holds_tokens
                kept.remove(source)
                num_freed += 1
                continue
            twin.tokens = source.tokens[:count]
            await twin.grow(1)
            opened.append(twin)
            num_forked += 1
        elif opened:
            await opened.pop().sequences.clear()
        held = sum(len(session.tokens) for session in opened)
        assert sum(holdings.tokens.get(client, 0) for client in (PeerId("a"), PeerId("b"))) == held
        assert abs(memory.free_bytes - (LIMIT - held)) <= 1  # it is a part of all, rounded
        assert memory.used_bytes == held + holdings.tokens.get(NO_CLIENT, 0) <= LIMIT
        assert memory.num_clients(PeerId("a"), 0.0) <= 2
    assert num_forked and num_freed
    for session in (*opened, *kept):
        await session.sequences.clear()
    assert memory.used_bytes == 0 and not holdings.tokens and not len(memory.kept)
    await runner.stop()
