"""Which model of the swarm a name means, by a directory.

It is a full peer's directory, or one that asks by gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from protocols.defaults import ROUTE_TIMEOUT_S
from protocols.errors import NoRouteError, PeerUnreachableError
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.weights import Manifest
from swarm.checkpoints.layout import read_manifest
from swarm.rpc.pool import ChannelPool
from swarm.weights import names
from swarm.weights.cache import ModelCache, find
from swarm.weights.election import chosen, tallies
from swarm.weights.fetch import fetch_files, fetch_manifest
from swarm.weights.names import is_digest, split_name
from swarm.weights.naming import Naming
from swarm.weights.reputation import Reputation

MAX_NAMES = 64
"""Names whose peers are looked at for a digest without a name."""

READ_AGAIN_S = 0.5
"""Seconds until a directory that cannot be asked is asked again."""

T = TypeVar("T")


class Peers(Protocol):
    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...


class Directory(Protocol):
    """`swarm.directory.directory.Directory`, or the one that asks by gRPC."""

    async def snapshot(self, model: str) -> Peers: ...

    async def models(self) -> Mapping[str, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model that the swarm serves."""

    model: ModelId
    records: tuple[PeerRecord, ...]
    """All who announce it, whatever their weights."""
    note: str = ""
    """What to tell about other weights under the same name."""


async def once_readable(look: Callable[[], Awaitable[T]], timeout_s: float = ROUTE_TIMEOUT_S) -> T:
    """What `look` finds, which is called again while our directory cannot be asked: p2pd is being started again, say. After so long,
    PeerUnreachableError, with the reason."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + timeout_s
    while True:
        try:
            return await look()
        except PeerUnreachableError as error:
            if loop.time() >= ends_at:
                raise PeerUnreachableError(f"the directory could not be asked for {timeout_s:.0f} s: {error}") from error
        await asyncio.sleep(min(READ_AGAIN_S, max(0.0, ends_at - loop.time())))


async def find_in_swarm(directory: Directory, text: str, naming: Naming) -> Found | None:
    """The model that `NAME`, `NAME@DIGEST` (or its beginning) or the beginning of a digest stands for; None if no peer serves it.

    A name means what it meant here before; of several weights under a new name, those of most answering peers on a complete route.
    ModelMismatchError if other weights are served by a name than before. ModelNotFoundError if the beginning of a digest fits several.
    """
    name, prefix = split_name(text)
    records = (await directory.snapshot(name)).peers
    asked: str | None = name
    found = tallies(records, asked, prefix)
    if not found and not prefix and is_digest(text):
        looks = await asyncio.gather(*(directory.snapshot(known) for known in list(await directory.models())[:MAX_NAMES]))
        records = tuple(record for look in looks for record in look.peers)
        asked, prefix = None, text
        found = tallies(records, asked, prefix)
    if not found:
        return None
    before = None if asked is None else await asyncio.to_thread(naming.meant_before, asked)
    if len({one.model.digest for one in found}) > 1 and before not in {one.model.digest for one in found}:
        answering = await naming.answering(records, asked, prefix)
        found = [one for one in tallies(records, asked, prefix, answering) if one.peers] or found
    meant, note = chosen(found, text, before)
    return Found(model=meant.model, records=records, note=note)


async def look_elsewhere(directory: Directory, text: str, clock_fault: str = "") -> str:
    """For a name that the swarm does not serve, before it is looked for on the Hub: what to add to an error there.

    ModelNotFoundError if the swarm serves a name so similar that this one is probably misspelt: the Hub is not asked then. Nor if our
    clock is wrong (`clock_fault` says so), and the swarm seems to serve nothing: NoRouteError.
    """
    served = await directory.models()
    if names.is_misspelt(text, served):
        raise names.not_served(text, served)
    if clock_fault and not served:
        raise NoRouteError(
            f"{clock_fault}; until then what others announce looks expired here, and no peer seems to serve {text[:120]}"
        )
    return names.served_too(text, served)


def find_in_cache(root: Path, text: str, naming: Naming) -> tuple[ModelId, Manifest] | None:
    """The same among what was fetched before, for a time when no peer serves it."""
    name, prefix = split_name(text)
    return find(root, name, prefix or naming.memory.digest_of(name) or "")


async def open_cache(
    root: Path, found: Found, pool: ChannelPool, naming: Naming | None = None, reputation: Reputation | None = None
) -> ModelCache:
    """The model's folder with manifest, config and small files in it, fetched where they are not there; no tensor yet.

    naming: from now on, the model's name means these weights. `reputation`: what peers have done before in this process; it is told what
    they do now.
    """
    reputation = reputation or Reputation(pool.is_connected)
    holders = [record for record in found.records if record.hosted_of(found.model.digest)]
    manifest = await asyncio.to_thread(read_manifest, root / found.model.digest)
    if manifest is None or manifest.digest != found.model.digest:
        manifest = await fetch_manifest(pool, holders, found.model, reputation)
    cache = await asyncio.to_thread(ModelCache, root, found.model, manifest)
    try:
        await fetch_files(pool, holders, cache, reputation)
    except BaseException:
        cache.close()
        raise
    if naming is not None:
        await asyncio.to_thread(naming.keep, found.model)
    return cache
