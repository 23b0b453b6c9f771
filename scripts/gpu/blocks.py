"""Random Llama blocks behind a node's own engine and runner."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import models

from gpu.sizes import Sizes


def make(device: str, sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Section `model`: a checkpoint on disk, which the other sections load as a node does."""
    path = models.checkpoint(sizes.shape, folder, device)
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {"model": str(sizes.shape), "parameters": sizes.shape.block_values, "stored_bytes": stored}


@dataclass(frozen=True, slots=True)
class Blocks:
    """The loaded span."""

    engine: Any
    weight_bytes: int
    kv_bytes_per_token: int


def load(device: str, sizes: Sizes, folder: Path) -> Blocks:
    """Every block of the checkpoint that `make` left in `folder`, by the engine that proves exact there."""
    import torch

    from node import hardware
    from node.engines.engine import choose_engine
    from protocols import units
    from protocols.ids import Span
    from swarm.models.checkpoint import open_checkpoint
    from swarm.models.loading import load_span
    from swarm.models.sizes import kv_bytes_per_token, unit_bytes

    checkpoint = open_checkpoint(folder / sizes.shape.name)
    span, dtype = Span(0, checkpoint.num_blocks), getattr(torch, sizes.shape.dtype)
    free_bytes = hardware.room_bytes(device)
    weight_bytes = unit_bytes(checkpoint, units.Blocks.of(span), dtype)
    module = load_span(checkpoint, span, dtype=dtype, device=device)
    engine = choose_engine(module, int((free_bytes - weight_bytes) * hardware.KV_SHARE))
    return Blocks(engine, weight_bytes, kv_bytes_per_token(checkpoint.config, span, dtype))


@asynccontextmanager
async def serving(blocks: Blocks) -> AsyncIterator[Serving]:
    """A node's runner over these blocks, which has made all of its captured forwards before anything is timed."""
    from node.serving.runner import Runner

    while await asyncio.to_thread(blocks.engine.warm_up):
        pass
    runner = Runner(blocks.engine, token_bytes=blocks.kv_bytes_per_token)
    runner.start()
    try:
        yield Serving(runner)
    finally:
        await runner.stop()


class Serving:
    """Opens sessions, each of a client of its own."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self._numbers = itertools.count(1)

    async def open(self, prompt_tokens: int) -> Chat:
        """A session that has a prompt already."""
        from node.serving.session_sequences import SessionSequences
        from protocols.ids import PeerId, SessionId

        number = next(self._numbers)
        chat = Chat(SessionSequences(self.runner, SessionId(number.to_bytes(16, "big")), PeerId(f"client-{number}")), number)
        await chat.feed(prompt_tokens)
        return chat


class Chat:
    """One session's sequences at the node."""

    def __init__(self, rows: Any, seed: int) -> None:
        import torch

        self._rows = rows
        token_1H = torch.randn(1, rows.hidden_size, generator=torch.Generator().manual_seed(seed))
        self._token_1H = token_1H.to(rows.dtype)

    async def feed(self, tokens: int) -> None:
        """A step of so many tokens; its output has arrived on the CPU, and is finite."""
        output = (await self._rows.step((), [tokens], self._token_1H.expand(tokens, -1), None)).values
        if output.shape[0] != tokens or not bool(output.isfinite().all()):
            raise ValueError(f"a step of {tokens} tokens gave {list(output.shape)}, finite: {bool(output.isfinite().all())}")

    async def decode(self, tokens: int) -> None:
        for _ in range(tokens):
            await self.feed(1)

    async def close(self) -> None:
        await self._rows.clear()
