"""Where a node's model comes from: its description first, then the tensors of each span that it is about to load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from protocols.ids import ModelId, Span
from protocols.weights import Manifest
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.digest import build_manifest
from swarm.models.resolve import name_in_swarm, resolve

OnProgress = Callable[[int, int], None]
"""Told (bytes that are here, bytes that are needed)."""


class ModelSource(Protocol):
    """What a node needs of it."""

    async def open(self) -> tuple[Checkpoint, ModelId, Manifest]:
        """Files, name and digest of the model. Called once, when the peer has joined."""
        ...

    async def fetch(self, span: Span, ends: bool, on_progress: OnProgress) -> None:
        """Make the tensors of `span` present (with embedding, norm and head where `ends`); returns once all are."""
        ...


class LocalSource:
    """A directory of this machine, or the Hub's cache: everything is there once it is open."""

    def __init__(self, model: str, model_name: str | None, digests: Path) -> None:
        """digests: folder that keeps what was hashed before."""
        self._model, self._model_name, self._digests = model, model_name, digests

    async def open(self) -> tuple[Checkpoint, ModelId, Manifest]:
        """The first time each weight is read once, so it may take a while. ModelNotFoundError says where we looked."""
        return await asyncio.to_thread(self._open)

    def _open(self) -> tuple[Checkpoint, ModelId, Manifest]:
        checkpoint = open_checkpoint(resolve(self._model))
        manifest = build_manifest(checkpoint, self._digests)
        return checkpoint, ModelId(self._model_name or name_in_swarm(self._model), manifest.digest), manifest

    async def fetch(self, span: Span, ends: bool, on_progress: OnProgress) -> None:
        """Nothing to do."""
