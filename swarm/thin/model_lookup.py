"""Resolves a model's name, and finds its peers and precision.

It waits as long as the route timeout.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from protocols.errors import NoRouteError
from protocols.hosted import Hosted
from protocols.weights_id import Weights
from swarm import waiting
from swarm.routing.versions import is_version_of
from swarm.suggestion import USUAL, NodeCommand
from swarm.waiting import Slot, Waits
from swarm.weights import names, served
from swarm.weights.lookup import Directory, Found, find_in_swarm
from swarm.weights.naming import Naming

LOOK_AGAIN_S = 0.5


async def wait_for(
    directory: Directory,
    name: str,
    naming: Naming,
    route_timeout_s: float,
    hosting: NodeCommand = USUAL,
    slot: Slot | None = None,
) -> Found:
    """The model that the swarm serves by this name, or `name@digest`. slot: where is said that no node serves it yet.

    ModelNotFoundError at once if the swarm serves other models but not this one; NoRouteError if it serves none in time;
    ModelMismatchError if it serves other weights by this name than before.
    """
    loop = asyncio.get_running_loop()
    slot, since_s = slot or Waits().slot(), time.monotonic()
    ends_at = loop.time() + route_timeout_s
    while True:
        if (found := await find_in_swarm(directory, name, naming)) is not None:
            return found
        served_names = await directory.models()
        if names.nearest_first(name, served_names):
            raise names.not_served(name, served_names)
        if loop.time() >= ends_at:
            raise NoRouteError(
                f"no peer serves {name[:120]} (waited {route_timeout_s:.0f} s); "
                f"check the name and --peer, or host it: {hosting.text(name[:120])}"
            )
        slot.set(waiting.looking_up(name, since_s, route_timeout_s))
        await asyncio.sleep(min(LOOK_AGAIN_S, max(0.0, ends_at - loop.time())))


def blocks_of(found: Found) -> tuple[Hosted, ...]:
    """What is served of this model, in any version; never empty."""
    base = Weights(found.model)
    every = served.served(found.records, found.model.name)
    return tuple(one for _peer, one in every if is_version_of(one.weights, base))


def num_blocks(blocks: tuple[Hosted, ...], stored: int) -> int:
    """Blocks of the model: as many as the manifest has, if one of those who serve it says so; else as most of them say.

    The manifest is what the digest stands for, but in a family with two towers only nodes know which one is cut into blocks.
    """
    counts = Counter(one.num_blocks for one in blocks)
    return stored if stored in counts else max(counts, key=lambda count: (counts[count], count))
