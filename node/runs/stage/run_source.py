"""Version 0 of a run: drawn, from a directory, or from peers.

As `ModelSource` for a model; what is drawn here is compared with the run's manifest, and what differs (another CPU may draw other bits) is
fetched from peers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from node.hosting.model_source import ModelSource, OnProgress
from node.runs.opening import OpenRun
from node.training.initial import draw_checkpoint
from protocols.ids import ModelId
from protocols.units import Unit
from protocols.weights import Manifest
from swarm.models.checkpoint import Checkpoint

Opening = Callable[[], Coroutine[Any, Any, OpenRun]]


class RunSource(ModelSource):
    """`open` it once; `run` is there from then on."""

    run: OpenRun

    def __init__(self, opening: Opening, *arguments: Any) -> None:
        """opening: finds or begins the run; the rest as `ModelSource`."""
        super().__init__(*arguments)
        self._opening = opening

    async def open(self) -> tuple[Checkpoint, ModelId, Manifest]:
        """As `ModelSource.open`; errors as `RunOpener`."""
        self.run = await self._opening()
        self._cache = self.run.cache
        return self._give(self.run.checkpoint, self.run.model, self.run.manifest, self.run.shelf)

    async def fetch(self, units: Sequence[Unit], on_progress: OnProgress = lambda here, needed: None) -> None:
        """As `ModelSource.fetch`; what the seed gives is drawn here first."""
        run = self.run
        if run.is_drawn and run.cache is not None:
            config, seed = run.checkpoint.config, run.spec.seed
            await asyncio.to_thread(draw_checkpoint, config, seed, list(units), run.cache.directory, run.manifest)
        await super().fetch(units, on_progress)
