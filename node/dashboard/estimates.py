"""Sizes and measured speeds of models, for predictions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from node.watching import sizes
from node.watching.watcher import Watcher
from node.watching.what_if import Machine, Prediction, Sizes, machines, predict
from protocols.errors import NoRouteError, OverloadedError, SwarmError
from protocols.ids import ModelId
from protocols.records import PeerRecord

SizesOf = Callable[[ModelId, Sequence[PeerRecord]], Awaitable[Sizes]]

FIND_S = 10.0
"""How long one prediction asks peers for manifests, those of the weights that names mean first: any peer may announce others."""

MAX_NAMES = 32
"""Names whose sizes are kept."""

MAX_MACHINES = 200
"""Machines that one prediction places: it takes some seconds for so many."""


class Estimates:
    """Sizes of the models that the swarm serves, each asked for once, and the last speed of each that was measured here."""

    def __init__(self, watcher: Watcher, sizes_of: SizesOf | None = None) -> None:
        """sizes_of: how a model's sizes are found; None = by its manifest, from a peer."""
        self._watcher, self._sizes_of = watcher, sizes_of or self._by_manifest
        self._found: dict[str, Sizes] = {}
        self._named: dict[str, Sizes] = {}
        self._predicting, self._counting = asyncio.Lock(), asyncio.Lock()
        self.measured: dict[str, float] = {}
        """Name -> tokens/s of the last answer of some length, one stream of several perhaps."""

    async def predicted(self, model: Sizes) -> tuple[list[Machine], Prediction]:
        """Where the machines of the last look would host it; one prediction at a time, beside the event loop. OverloadedError: another."""
        if self._predicting.locked():
            raise OverloadedError("another prediction is under way: try again in some seconds")
        async with self._predicting:
            known, look = await self.block_bytes(), self._watcher.look
            having = machines(look, known)[:MAX_MACHINES]
            return having, await asyncio.to_thread(predict, model, having, look)

    async def named(self, name: str) -> Sizes:
        """Of a model that the swarm serves by this name, or of a Hub name whose config is on this machine. From the Hub nothing is fetched.

        ModelNotFoundError: neither. OverloadedError: another visitor's is being counted. Else as `sizes.of_checkpoint`.
        """
        look = self._watcher.look
        rows = next((one for one in look.models if one.name == name and one.is_meant), None)
        if rows is not None:
            announcing = [record for record in look.records.values() if record.hosted_of(rows.digest)]
            return await self._sizes_of(ModelId(rows.name, rows.digest), announcing)
        if name not in self._named:
            self._named[name] = await self.count(lambda: sizes.of_hub_name(name))
            while len(self._named) > MAX_NAMES:
                del self._named[next(iter(self._named))]
        return self._named[name]

    async def count(self, work: Callable[[], Sizes]) -> Sizes:
        """What `work` returns, in a thread: it reads files, and may start a process. OverloadedError: one is under way."""
        if self._counting.locked():
            raise OverloadedError("another model's blocks are being counted: try again in some seconds")
        async with self._counting:
            return await asyncio.to_thread(work)

    async def block_bytes(self) -> dict[str, int]:
        """By digest, of each model of the last look whose peers give its manifest in time."""
        look = self._watcher.look
        digests = {rows.digest for rows in look.models}
        self._found = {digest: found for digest, found in self._found.items() if digest in digests}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIND_S):
                for rows in look.models:
                    if rows.digest not in self._found:
                        announcing = [record for record in look.records.values() if record.hosted_of(rows.digest)]
                        with contextlib.suppress(SwarmError):  # it is asked for again the next time
                            self._found[rows.digest] = await self._sizes_of(ModelId(rows.name, rows.digest), announcing)
        return {digest: found.block_bytes for digest, found in self._found.items()}

    async def _by_manifest(self, model: ModelId, records: Sequence[PeerRecord]) -> Sizes:
        source = self._watcher.source
        if source is None:
            raise NoRouteError("the swarm is not met")
        return await sizes.of_model(source.pool, records, model)
