"""Checks that the swarm serves our weights, and in which precision.

Asked once, before a model is built.

`verdict` and `best_dtype` are pure; `wait_until_served` asks the directory until a node serves the model, or the route timeout ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterable
from typing import Protocol

from protocols.errors import ModelMismatchError, NoRouteError, PeerUnreachableError, SwarmError
from protocols.hosted import Hosted
from protocols.ids import ModelId, short_peer
from protocols.records import PeerRecord
from protocols.weights import Manifest, difference
from protocols.weights_id import Weights
from swarm import waiting
from swarm.rpc.pool import ChannelPool
from swarm.suggestion import USUAL, NodeCommand
from swarm.waiting import Slot, Waits
from swarm.weights.fetch import fetch_manifest

log = logging.getLogger(__name__)

ASK_AGAIN_S = 0.5
"""Seconds between two looks into the directory while no node serves the model."""


class Peers(Protocol):
    @property
    def peers(self) -> tuple[PeerRecord, ...]: ...


class Directory(Protocol):
    async def snapshot(self, model_name: str) -> Peers: ...


def served(peers: Iterable[PeerRecord], name: str) -> list[tuple[PeerRecord, Hosted]]:
    """All blocks of a model of this name, whatever its digest, at peers that have not said they are leaving."""
    staying = (peer for peer in peers if peer.state != "draining")
    return [(peer, one) for peer in staying for one in peer.blocks() if one.weights.model.name == name]


def best_dtype(hosted: Iterable[Hosted], num_blocks: int, known: Collection[str]) -> str:
    """The compute dtype, of those `known`, in which most of the model's blocks are served; float32 wins a tie, and if there are none.

    What a record claims beyond the model, or in an unknown format, counts for nothing.
    """
    blocks: dict[str, set[int]] = {"float32": set()}
    for one in hosted:
        if one.dtype in known:
            blocks.setdefault(one.dtype, set()).update(range(one.span.start, min(one.span.stop, num_blocks)))
    return max(blocks, key=lambda dtype: (len(blocks[dtype]), dtype == "float32"))


async def wait_until_served(
    directory: Directory,
    pool: ChannelPool,
    model: ModelId,
    manifest: Manifest,
    route_timeout_s: float,
    hosting: NodeCommand = USUAL,
    slot: Slot | None = None,
) -> list[Hosted]:
    """The blocks that are served of exactly this model. slot: where is said that none is yet.

    A directory that cannot be asked, as while p2pd is started again, is asked again. Raises ModelMismatchError at once if the name is
    served with other weights only, NoRouteError if no node serves it in time.
    """
    loop = asyncio.get_running_loop()
    slot, since_s = slot or Waits().slot(), time.monotonic()
    ends_at = loop.time() + route_timeout_s
    while True:
        found, reason = await _look(directory, model)
        ours = [one for _, one in found if one.weights == Weights(model)]
        others = [(peer, one) for peer, one in found if one.weights.model.digest != model.digest]
        if ours:
            if others:
                log.warning("%s is also served with other weights, by %s", model.name, short_peer(others[0][0].peer))
            return ours
        if others:
            raise await _mismatch(pool, model, manifest, others)
        if loop.time() >= ends_at:
            raise NoRouteError(
                f"no peer serves {model.name} (waited {route_timeout_s:.0f} s{reason}); "
                f"check the name and --peer, or host it: {hosting.text(model.name)}"
            )
        slot.set(waiting.looking_up(model.name, since_s, route_timeout_s))
        await asyncio.sleep(min(ASK_AGAIN_S, max(0.0, ends_at - loop.time())))


async def _look(directory: Directory, model: ModelId) -> tuple[list[tuple[PeerRecord, Hosted]], str]:
    """What is served by the name, or why that cannot be told."""
    try:
        return served((await directory.snapshot(model.name)).peers, model.name), ""
    except PeerUnreachableError as error:
        return [], f"; last failure: {error}"


async def _mismatch(
    pool: ChannelPool, model: ModelId, manifest: Manifest, others: list[tuple[PeerRecord, Hosted]]
) -> ModelMismatchError:
    """The error that says what differs, as far as one of the peers tells."""
    theirs = others[0][1].weights.model
    holders = [peer for peer, one in others if one.weights.model == theirs]
    try:
        what = difference(manifest, await fetch_manifest(pool, holders, theirs)) or "nothing that can be named"
    except SwarmError as error:
        log.info("%s", error)
        what = "no peer gave its manifest, so what differs is unknown"
    return ModelMismatchError(
        f"{model.name} here is {model.digest[:12]}…, but the swarm serves {theirs.digest[:12]}… under that name: {what}; "
        "get the same checkpoint, or serve yours under another name (--model-name)"
    )
