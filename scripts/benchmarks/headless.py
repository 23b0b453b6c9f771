"""A client without embedding and head.

Its sessions send random hidden states, so that only the nodes compute.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocols.inference import WANT_ALL, StepSpec


class Headless:
    """Sessions over one swarm's route. All methods are called from one event loop."""

    def __init__(self, model: Path, peer: str, hidden_size: int) -> None:
        """Blocks until the model is served."""
        from swarm.client import connection

        _checkpoint, self._backend = connection.connect(model, connection.Settings(peers=(peer,), dtype="float32"))
        self._hidden_size = hidden_size

    def close(self) -> None:
        self._backend.close()

    async def open(self, prompt_tokens: int) -> Chat:
        """A session that has a prompt already."""
        chat = Chat(self._backend.open(), self._hidden_size)
        await chat.feed(prompt_tokens)
        return chat

    async def prefill_ms(self, tokens: int) -> float:
        """One long prompt in a session of its own."""
        started = time.perf_counter()
        (await self.open(tokens)).close()
        return (time.perf_counter() - started) * 1e3


class Chat:
    """One session."""

    def __init__(self, session: Any, hidden_size: int) -> None:
        import torch

        self._session = session
        self._token_1H = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(1))

    async def feed(self, tokens: int) -> None:
        from swarm.client.backend import StepRequest

        hidden = self._token_1H.expand(1, tokens, -1)
        await self._session.step_async(
            StepRequest(counts=(tokens,), tokens=hidden, spec=StepSpec(want=1 if tokens > 1 else WANT_ALL))
        )

    async def decode(self, tokens: int) -> list[float]:
        """When each of so many further tokens was there, in seconds."""
        at_s = []
        for _ in range(tokens):
            await self.feed(1)
            at_s.append(time.perf_counter())
        return at_s

    def close(self) -> None:
        self._session.close()


async def tokens_per_s(client: Headless, num_sessions: int, prompt_tokens: int, tokens: int) -> float:
    """So many sessions at once, their prompts not counted."""
    chats = [await client.open(prompt_tokens) for _ in range(num_sessions)]
    started = time.perf_counter()
    ends: Sequence[list[float]] = await asyncio.gather(*(chat.decode(tokens) for chat in chats))
    for chat in chats:
        chat.close()
    return num_sessions * tokens / (max(at_s[-1] for at_s in ends) - started)
