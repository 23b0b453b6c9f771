"""How fast this machine computes a block of a model."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from node import hardware
from node.engines.engine import Engine, choose_engine
from node.hosting.host_maker import measure_ms
from protocols.defaults import PREFILL_CHUNK_TOKENS
from protocols.ids import Span
from protocols.units import Blocks
from swarm.models.checkpoint import Checkpoint
from swarm.models.loading import load_span
from swarm.models.sizes import unit_bytes

ROUNDS = 20
"""Tokens, and prompts, that are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpeed:
    """Of one block, alone on the device."""

    device: str
    dtype: str
    engine: str
    token_ms: float
    """Milliseconds of one decoded token; its median."""
    prompt_ms: float
    """Milliseconds of `prompt_tokens` tokens of a prompt at once; its median."""
    prompt_tokens: int
    block_bytes: int
    """Its weights in this format."""

    @property
    def read_gb_s(self) -> float:
        """Weights that a decoded token reads, in GB a second: what bounds decoding on most devices."""
        return self.block_bytes / 1e6 / self.token_ms if self.token_ms else 0.0


def measure(checkpoint: Checkpoint, dtype: str, device: str) -> BlockSpeed:
    """Load block 0 and time it; its tensors are on this disk. ModelNotSupportedError if no engine is exact on it."""
    kind = hardware.torch_dtype(dtype)
    size = unit_bytes(checkpoint, Blocks.of(Span(0, 1)), kind)
    span = load_span(checkpoint, Span(0, 1), dtype=kind, device=device)
    engine = choose_engine(span, max(1 << 28, hardware.room_bytes(device) // 4))
    prompt_tokens = min(PREFILL_CHUNK_TOKENS, checkpoint.max_positions or PREFILL_CHUNK_TOKENS)
    measure_ms(engine)  # the first forwards load code and reserve memory
    return BlockSpeed(
        device=device, dtype=dtype, engine=type(engine).__name__, token_ms=measure_ms(engine, ROUNDS),
        prompt_ms=_prompt_ms(engine, prompt_tokens), prompt_tokens=prompt_tokens, block_bytes=size,
    )  # fmt: skip


@torch.inference_mode()
def _prompt_ms(engine: Engine, num_tokens: int) -> float:
    hidden_1TH = torch.zeros(1, num_tokens, engine.hidden_size, dtype=engine.dtype, device=engine.device)
    times_ms = []
    for _round in range(ROUNDS):
        sequence = engine.open()
        try:
            started = time.perf_counter()
            engine.step([(sequence, num_tokens)], hidden_1TH).cpu()
            times_ms.append((time.perf_counter() - started) * 1e3)
        finally:
            engine.close(sequence)
    return statistics.median(times_ms)
