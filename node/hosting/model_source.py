"""Where a node's model comes from, and what it gives to others.

The sources: a directory, peers of the swarm, our cache of what they gave, or the Hub.

source = ModelSource(config, peer, uploader, on_event, on_fetch)
checkpoint, model, manifest = await source.open()        the peer has joined by then
await source.fetch(units)                                the tensors are on this disk when it returns
source.close()
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from node.config import NodeConfig
from node.events import Event, OnEvent
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.units import Ends, Unit
from protocols.weights import Manifest
from protocols.words import counted
from swarm import waiting
from swarm.checkpoints.digest import build_manifest
from swarm.checkpoints.resolve import resolve
from swarm.checkpoints.unit_parts import StoredModel, parts_of
from swarm.meeting import keyring
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import stored_names
from swarm.places import is_place, name_in_swarm
from swarm.waiting import Waits
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_tensors
from swarm.weights.lookup import Found, find_in_cache, find_in_swarm, look_elsewhere, once_readable, open_cache
from swarm.weights.naming import Naming
from swarm.weights.ranking import ranked
from swarm.weights.reputation import Reputation
from swarm.weights.shelf import Shelf
from swarm.weights.terms import Options, Progress, Report
from swarm.weights.uploader import Uploader

if TYPE_CHECKING:
    from swarm.peer.peer import Peer

LOOK_AGAIN_S = 1.0
"""Seconds until the second look-up, if a name was not found right after joining."""

OnProgress = Callable[[int, int], None]
"""Told (bytes that are here, bytes that are needed)."""

OnFetch = Callable[[Progress], None]
"""Told more, for a progress bar."""


def weights_dir(data_dir: Path) -> Path:
    """Where fetched models are kept."""
    return data_dir / "weights"


class ModelSource:
    """One node's model. `open` once, `fetch` for every span that it is about to load."""

    def __init__(
        self, config: NodeConfig, peer: Peer, uploader: Uploader, on_event: OnEvent, on_fetch: OnFetch, waits: Waits
    ) -> None:
        """uploader: gives to others what we have, from `open` on."""
        self._config, self._peer, self._uploader, self._on_event, self._on_fetch = config, peer, uploader, on_event, on_fetch
        self._waits = waits
        self._naming = Naming.of(
            peer.ping, config.data_dir, keyring.known_as(config.swarm, config.entry.key), config.accept_new_weights
        )
        self._cache: ModelCache | None = None
        self._checkpoint: Checkpoint | None = None
        self._shelf: Shelf | None = None
        self._reputation = Reputation(peer.pool.is_connected)

    async def open(self) -> tuple[Checkpoint, ModelId, Manifest]:
        """Find MODEL: an existing directory, a name that the swarm serves (or that we have fetched before), a Hub name.

        A directory's weights are hashed the first time. From peers come manifest, config and tokenizer, no tensor yet.
        """
        name, served = self._config.model, ""
        if not is_place(name):
            self._cache = await self._from_swarm()
            peer = self._peer
            served = "" if self._cache else await once_readable(lambda: look_elsewhere(peer.directory, name, peer.clocks.fault))
        if self._cache is None:
            return await self._from_directory(served)
        checkpoint = await asyncio.to_thread(open_checkpoint, self._cache.directory)
        model = ModelId(self._config.model_name or self._cache.model.name, self._cache.model.digest)
        return self._give(checkpoint, model, self._cache.manifest, Shelf.of_cache(self._cache))

    async def _from_directory(self, served: str) -> tuple[Checkpoint, ModelId, Manifest]:
        config = self._config

        def read() -> tuple[Checkpoint, Manifest]:
            with self._waits.on(waiting.loading(config.model)):
                checkpoint = open_checkpoint(resolve(config.model, served=served, data_dir=config.data_dir, waits=self._waits))
            hashing = waiting.hashing(checkpoint.name)
            with self._waits.reporting() as slot:
                manifest = build_manifest(
                    checkpoint, config.data_dir / "digests", lambda done, total: slot.set(hashing.at(done, total))
                )
            return checkpoint, manifest

        checkpoint, manifest = await asyncio.to_thread(read)
        model = ModelId(config.model_name or name_in_swarm(config.model), manifest.digest)
        return self._give(checkpoint, model, manifest, Shelf.of_directory(model, manifest, checkpoint.tensors, checkpoint.path))

    def _give(
        self, checkpoint: Checkpoint, model: ModelId, manifest: Manifest, shelf: Shelf
    ) -> tuple[Checkpoint, ModelId, Manifest]:
        self._checkpoint, self._model = checkpoint, model
        self._uploader.add(shelf)
        return checkpoint, model, manifest

    async def _from_swarm(self) -> ModelCache | None:
        root = weights_dir(self._config.data_dir)
        found = await self._look_up()
        if found:
            if found.note:
                self._on_event(Event("warning", found.note))
            with self._waits.on(waiting.fetching(f"config and tokenizer of {found.model.name}")):
                return await open_cache(root, found, self._peer.pool, self._naming, self._reputation)
        cached = await asyncio.to_thread(find_in_cache, root, self._config.model, self._naming)
        if cached is None:
            return None
        model, _manifest = cached
        text = f"no node serves {model.name} now; we go on with what was fetched before ({model.digest[:12]})"
        self._on_event(Event("warning", text))
        return await open_cache(root, Found(model=model, records=()), self._peer.pool, reputation=self._reputation)

    async def _look_up(self) -> Found | None:
        def look() -> Awaitable[Found | None]:
            return find_in_swarm(self._peer.directory, self._config.model, self._naming)

        found = await once_readable(look)
        if found is None and self._config.peers:
            await asyncio.sleep(LOOK_AGAIN_S)
            found = await once_readable(look)
        return found

    # --- tensors

    async def fetch(self, units: Sequence[Unit], on_progress: OnProgress = lambda here, needed: None) -> None:
        """Make the tensors of these units present, as whole files that can be loaded; returns once all are.

        NoRouteError: no peer gives them; DiskFullError. What was fetched stays, also if this call is cancelled.
        """
        if self._cache is None:
            return
        names = await asyncio.to_thread(self._names, units)
        if not await asyncio.to_thread(self._cache.absent, names):
            return

        def tell(progress: Progress) -> None:
            self._on_fetch(progress)
            on_progress(progress.done_bytes, progress.total_bytes)

        options = Options(
            reputation=self._reputation,
            disk_bytes=self._config.disk_bytes,
            on_progress=tell,
            on_warning=lambda text: self._on_event(Event("warning", text)),
        )

        async def sources() -> Sequence[PeerRecord]:
            assert self._cache is not None
            records = (await self._peer.directory.snapshot(self._cache.model.name)).peers
            return ranked(records, self._cache.model.digest, units, self._peer.peer_id, random.random, self._reputation.rank)

        report = await fetch_tensors(names, self._cache, self._peer.pool, sources, options)
        self._on_event(Event("fetched", _told(report)))

    def _names(self, units: Sequence[Unit]) -> list[str]:
        """Stored tensors of these units: of blocks all of them, so that we can give whole blocks on."""
        assert self._checkpoint is not None
        checkpoint = self._checkpoint
        ends = tuple(stored_names(checkpoint, Ends())) if Ends() in units else ()
        model = StoredModel(tensors=checkpoint.tensors, prefix=checkpoint.block_prefix, ends=ends)
        return [part.name for unit in units for part in parts_of(unit, model)]

    def close(self) -> None:
        """Let go of the cache: from now on it may be pruned."""
        if self._cache is not None:
            self._cache.close()


def _told(report: Report) -> str:
    """One line about a download."""
    resumed = f", {report.resumed_bytes / 1e6:.1f} MB of it before" if report.resumed_bytes else ""
    rate = report.fetched_bytes / 1e6 / report.seconds if report.seconds else 0.0
    num = len(report.from_peer)
    return (
        f"{report.total_bytes / 1e6:.1f} MB{resumed}, in {report.seconds:.1f} s from {counted(num, 'peer')} "
        f"({rate:.0f} MB/s, {report.fetched_bytes} bytes received)"
    )
