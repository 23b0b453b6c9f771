"""From a span to a host that can start: its tensors are fetched and loaded, and an engine proves exact on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from node import hardware
from node.model_source import ModelSource, OnProgress
from node.presence import Presence
from node.serving.engine import Engine, choose_engine
from node.serving.host import Host
from protocols.ids import Span
from protocols.weights import Manifest
from swarm.models.checkpoint import Checkpoint
from swarm.models.loading import load_span
from swarm.models.sizes import kv_bytes_per_token, span_bytes

KV_SHARE = 0.8
"""Share of the memory left beside the weights that sessions may take; the rest is for activations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMaker:
    """Makes this node's hosts, one after the other: all of one model, device and number format."""

    source: ModelSource
    checkpoint: Checkpoint
    manifest: Manifest
    presence: Presence
    device: str
    dtype: str

    async def make(self, span: Span, on_progress: OnProgress) -> Host:
        """Fetch and load. Whatever fails leaves nothing behind but what was fetched."""
        await self.source.fetch(span, False, on_progress)
        engine = await asyncio.to_thread(self._load, span, hardware.room_bytes(self.device))
        return Host(
            engine,
            self.presence.served(span, self.checkpoint.hidden_size),
            self.manifest,
            kv_bytes_per_token=kv_bytes_per_token(self.checkpoint.config, span, hardware.torch_dtype(self.dtype)),
            max_positions=self.checkpoint.max_positions,
        )

    def _load(self, span: Span, free_bytes: int) -> Engine:
        kind = hardware.torch_dtype(self.dtype)
        module = load_span(self.checkpoint, span, dtype=kind, device=self.device)
        return choose_engine(module, int((free_bytes - span_bytes(self.checkpoint, span, kind)) * KV_SHARE))
