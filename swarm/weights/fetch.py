"""Fetch from peers: a manifest, the small files, tensors.

Thin clients, full clients and nodes share this. No torch here.

manifest = await fetch_manifest(pool, records, model)
directory = await fetch_files(pool, records, cache)
report = await fetch_tensors(names, cache, pool, sources, options)       whole files, which a checkpoint is loaded from
report = await fetch_parts(parts, cache, pool, sources, options)         an expert, or a partition
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from protocols.errors import ModelNotSupportedError
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.services import MANIFEST
from protocols.weights import Manifest, ManifestRequest
from swarm.checkpoints.digest import is_small_file
from swarm.checkpoints.tensor_part import TensorPart
from swarm.rpc.pool import ChannelPool
from swarm.weights.asking import Inquiry, Turn
from swarm.weights.cache import ModelCache
from swarm.weights.download import Download
from swarm.weights.ranking import by_lot
from swarm.weights.reputation import Reputation
from swarm.weights.source import Source, connected
from swarm.weights.terms import PROGRESS_TIMEOUT_S, Options, Report, Sources


async def fetch_manifest(
    pool: ChannelPool,
    records: Sequence[PeerRecord],
    model: ModelId,
    reputation: Reputation | None = None,
    draw: Callable[[], float] = random.random,
    progress_timeout_s: float = PROGRESS_TIMEOUT_S,
) -> Manifest:
    """The manifest of `model` from the first peer whose answer has its digest; NoRouteError where none of them gave it.

    An answer is hashed before a word of it is read; what has the right digest is read in a thread, since it may be long.
    """

    async def ask(record: PeerRecord, turn: Turn) -> Manifest:
        channel = await connected(pool, record)
        turn.renew()
        data = await channel.unary(MANIFEST, ManifestRequest(model=model).encode())
        return await asyncio.to_thread(Manifest.parse, data, model.digest)

    reputation = reputation or Reputation(pool.is_connected)
    order = by_lot(records, draw, reputation.rank)
    return await Inquiry(order, ask, f"the manifest of {model.name}", reputation).result(progress_timeout_s)


async def fetch_files(
    pool: ChannelPool,
    records: Sequence[PeerRecord],
    cache: ModelCache,
    reputation: Reputation | None = None,
    draw: Callable[[], float] = random.random,
    progress_timeout_s: float = PROGRESS_TIMEOUT_S,
) -> Path:
    """Tokenizer, template and generation config, each verified, beside the config; the directory, which transformers reads as any other."""
    wanted = []
    for number, entry in enumerate(cache.manifest.files):
        if not is_small_file(entry.name):
            raise ModelNotSupportedError(
                f"the manifest of {cache.model.name} lists a file {entry.name[:80]!r}; only tokenizer files are taken from peers"
            )
        if not (cache.directory / entry.name).exists():
            wanted.append(number)

    async def ask(record: PeerRecord, turn: Turn) -> None:
        source = await Source.open(pool, record, cache.model, cache.manifest)
        try:
            await source.holdings()
            turn.renew()
            for number in list(wanted):
                if number in wanted:  # no other peer has given it meanwhile
                    with cache.incoming(cache.manifest.files[number].name) as file:
                        await source.file(number, file.write, turn.renew)
                    wanted[:] = [one for one in wanted if one != number]
        finally:
            source.close()

    reputation = reputation or Reputation(pool.is_connected)
    if wanted:
        order = by_lot(records, draw, reputation.rank)
        await Inquiry(order, ask, f"the tokenizer of {cache.model.name}", reputation).result(progress_timeout_s)
    return cache.directory


async def fetch_tensors(names: Iterable[str], cache: ModelCache, pool: ChannelPool, sources: Sources, options: Options) -> Report:
    """Make these tensors (and the rest of their shards) present; errors as in `Download.run`. Nothing to do where they are."""
    return await Download(cache, cache.layout.whole(names), pool, sources, options).run()


async def fetch_parts(
    parts: Iterable[TensorPart], cache: ModelCache, pool: ChannelPool, sources: Sources, options: Options
) -> Report:
    """Make these parts readable (`ModelCache.read`), and fetch no more than the pieces that cover them and the lists of hashes of
    their tensors (32 bytes for each MiB). Errors as in `Download.run` and `Layout.covering`."""
    return await Download(cache, cache.layout.covering(parts), pool, sources, options).run()
