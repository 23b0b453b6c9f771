"""Fetch from peers: a manifest, the small files, tensors. What thin clients, full clients and nodes share; no torch here.

manifest = await fetch_manifest(pool, records, model)
directory = await fetch_files(pool, records, model, manifest, root)
report = await fetch_tensors(names, cache, pool, sources, options)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from protocols.errors import ModelMismatchError, ModelNotSupportedError, NoRouteError, SwarmError
from protocols.ids import ModelId, short_peer
from protocols.pieces import MAX_FILE_BYTES
from protocols.records import PeerRecord
from protocols.services import MANIFEST
from protocols.weights import Manifest, ManifestRequest
from swarm.models.digest import is_small_file
from swarm.rpc.pool import ChannelPool
from swarm.weights.cache import ModelCache
from swarm.weights.download import Download, Options, Report, Sources
from swarm.weights.source import Source

log = logging.getLogger(__name__)

MAX_ASKED = 8
"""Peers that are asked for a manifest or the files, one after the other, before we give up."""

T = TypeVar("T")


async def fetch_manifest(pool: ChannelPool, records: Sequence[PeerRecord], model: ModelId) -> Manifest:
    """The manifest of `model` from the first peer whose answer has its digest; NoRouteError where none of them gave it."""

    async def ask(record: PeerRecord) -> Manifest:
        channel = await pool.channel(record.peer, record.addresses, record.certificate)
        manifest = Manifest.parse(await channel.unary(MANIFEST, ManifestRequest(model=model).encode()))
        if manifest.digest != model.digest:
            raise ModelMismatchError(
                f"peer {short_peer(record.peer)} sent the manifest of {manifest.digest[:12]}…, not {model.digest[:12]}…"
            )
        return manifest

    return await _first(records, ask, f"the manifest of {model.name}")


async def fetch_files(pool: ChannelPool, records: Sequence[PeerRecord], cache: ModelCache) -> Path:
    """Tokenizer, template and generation config, each verified, beside the config; the directory, which transformers reads as any other."""
    wanted = []
    for number, entry in enumerate(cache.manifest.files):
        if not is_small_file(entry.name):
            raise ModelNotSupportedError(
                f"the manifest of {cache.model.name} lists a file {entry.name[:80]!r}; only tokenizer files are taken from peers"
            )
        if not (cache.directory / entry.name).exists():
            wanted.append(number)
    if wanted:

        async def ask(record: PeerRecord) -> None:
            source = await Source.open(pool, record, cache.model, cache.manifest)
            try:
                await source.holdings()
                for number in list(wanted):
                    content = await source.file(number)
                    assert len(content) <= MAX_FILE_BYTES
                    await asyncio.to_thread(cache.write, cache.manifest.files[number].name, content)
                    wanted.remove(number)
            finally:
                source.close()

        await _first(records, ask, f"the tokenizer of {cache.model.name}")
    return cache.directory


async def fetch_tensors(names: Iterable[str], cache: ModelCache, pool: ChannelPool, sources: Sources, options: Options) -> Report:
    """Make these tensors (and the rest of their units) present; errors as in `Download.run`. Nothing to do where they are."""
    units = cache.layout.units_with(names)
    return await Download(cache, units, pool, sources, options).run()


async def _first(records: Sequence[PeerRecord], ask: Callable[[PeerRecord], Awaitable[T]], what: str) -> T:
    """What the first peer that can gives; whoever cannot, or lies, is named in the log."""
    failure: SwarmError | None = None
    for record in records[:MAX_ASKED]:
        try:
            return await ask(record)
        except SwarmError as error:
            failure = error
            log.warning("%s: not from peer %s: %s", what, short_peer(record.peer), error)
    raise NoRouteError(
        f"no peer gave {what}: {failure or 'nobody serves it'}; try again when one is up, or give a directory that holds the model"
    ) from failure
