"""Signed records of made-up peers of the model, stored at every node."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import SimpleNamespace
from typing import Any

from attacks.target import Target, untrusted_peer
from tests.hostile.flood import Item, Mallory, made_up, mallory

BATCH = 400
LIFE_S = 85.0


def nodes(target: Target) -> list[Any]:
    """What the flood needs to know of each honest node."""
    return [SimpleNamespace(peer_id=place.peer, multiaddrs=[str(place)]) for place in target.places]


async def attack(target: Target) -> None:
    model = (await untrusted_peer(target)).weights.model
    async with mallory(*nodes(target)) as attacker:
        target.on_attack()
        for number in itertools.count():
            records = await asyncio.to_thread(_fresh, number, target.swarm, model)
            await store(target, attacker, records)


async def store(target: Target, attacker: Mallory, items: list[Item]) -> None:
    """At every node; each takes or refuses them."""
    for kept in await asyncio.gather(*(attacker.store(node, items) for node in nodes(target))):
        target.arrived.update("kept" if is_kept else "refused" for is_kept in kept)


def _fresh(number: int, swarm: str, model: Any) -> list[Item]:
    """Another BATCH, whose authors are others than the last one's."""
    return made_up(BATCH * (number % 20 + 1), swarm, time.time() + LIFE_S, model)[-BATCH:]
