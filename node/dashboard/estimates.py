"""Sizes and measured speeds of models, for predictions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from node.watching import sizes
from node.watching.watcher import Watcher
from node.watching.what_if import Sizes
from protocols.errors import NoRouteError, SwarmError
from protocols.ids import ModelId
from protocols.records import PeerRecord

SizesOf = Callable[[ModelId, Sequence[PeerRecord]], Awaitable[Sizes]]


class Estimates:
    """Sizes of the models that the swarm serves, each asked for once, and the last speed of each that was measured here."""

    def __init__(self, watcher: Watcher, sizes_of: SizesOf | None = None) -> None:
        """sizes_of: how a model's sizes are found; None = by its manifest, from a peer."""
        self._watcher, self._sizes_of = watcher, sizes_of or self._by_manifest
        self._found: dict[str, Sizes] = {}
        self.measured: dict[str, float] = {}
        """Name -> tokens/s of the last answer of some length, one stream of several perhaps."""

    async def block_bytes(self) -> dict[str, int]:
        """By digest, of each model of the last look whose peers give its manifest."""
        look = self._watcher.look
        for rows in look.models:
            if rows.digest not in self._found:
                announcing = [record for record in look.records.values() if record.hosted_of(rows.digest)]
                try:
                    self._found[rows.digest] = await self._sizes_of(ModelId(rows.name, rows.digest), announcing)
                except SwarmError:
                    continue  # it is asked for again the next time
        return {digest: found.block_bytes for digest, found in self._found.items()}

    async def _by_manifest(self, model: ModelId, records: Sequence[PeerRecord]) -> Sizes:
        source = self._watcher.source
        if source is None:
            raise NoRouteError("the swarm is not met")
        return await sizes.of_model(source.pool, records, model)
