"""Fetches config, tokenizer, embedding and head of a named model.

They come from peers of the swarm, verified, into the cache.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from protocols.errors import ModelNotSupportedError
from protocols.records import PeerRecord
from protocols.units import Ends
from swarm import waiting
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import stored_names
from swarm.waiting import Waits
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_tensors
from swarm.weights.lookup import Found, find_in_cache, find_in_swarm, once_readable, open_cache
from swarm.weights.naming import Naming
from swarm.weights.ranking import ranked
from swarm.weights.reputation import Reputation
from swarm.weights.terms import Options

if TYPE_CHECKING:
    from swarm.client.peers import AnyPeer

log = logging.getLogger(__name__)


class InTrainingError(ModelNotSupportedError):
    """Embedding and head of a model in training cannot be loaded here."""


async def ends_from_peers(
    peer: AnyPeer, name: str, root: Path, naming: Naming, waits: Waits, route_timeout_s: float
) -> tuple[ModelCache, Checkpoint] | None:
    """The model that `name` (or NAME@DIGEST) stands for in the swarm, with embedding and head on this disk. None if no peer serves it
    and it was never fetched. The caller closes the cache once it has loaded.

    root: where fetched models are kept. route_timeout_s: how long the directory is asked again that cannot be asked.
    Raises InTrainingError (its ends change from version to version).
    Also ModelNotFoundError (several fit), ModelMismatchError (the name meant others before),
    NoRouteError (no peer gives them), DiskFullError.
    """
    reputation = Reputation(peer.pool.is_connected)
    with waits.on(waiting.JOINING):
        found = await once_readable(lambda: find_in_swarm(peer.directory, name, naming), route_timeout_s)
    if found is None:
        cached = await asyncio.to_thread(find_in_cache, root, name, naming)
        if cached is None:
            return None
        found = Found(model=cached[0], records=())
    if found.note:
        log.warning("%s", found.note)
    with waits.on(waiting.fetching(f"config and tokenizer of {found.model.name}")):
        cache = await open_cache(root, found, peer.pool, naming, reputation)
    try:
        if cache.manifest.run is not None:
            raise InTrainingError(
                f"{cache.model.name} is a model in training: its embedding and head change with each version, and only its nodes have "
                "them; load it with thin=True, or leave thin out"
            )
        checkpoint = await asyncio.to_thread(open_checkpoint, cache.directory)
        names = await asyncio.to_thread(stored_names, checkpoint, Ends())
        if await asyncio.to_thread(cache.absent, names):
            await _fetch(peer, cache, names, waits, reputation)
    except BaseException:
        cache.close()
        raise
    return cache, checkpoint


async def _fetch(peer: AnyPeer, cache: ModelCache, names: Sequence[str], waits: Waits, reputation: Reputation) -> None:
    async def sources() -> Sequence[PeerRecord]:
        records = (await peer.directory.snapshot(cache.model.name)).peers
        return ranked(records, cache.model.digest, [Ends()], peer.peer_id, random.random, reputation.rank)

    with waits.on(waiting.fetching(f"embedding and head of {cache.model.name}")) as tell:
        options = Options(reputation=reputation, on_progress=lambda progress: tell(progress.done_bytes, progress.total_bytes))
        report = await fetch_tensors(names, cache, peer.pool, sources, options)
    log.info("embedding and head of %s: %.1f MB in %.1f s", cache.model.name, report.total_bytes / 1e6, report.seconds)
