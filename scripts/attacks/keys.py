"""Junk for the DHT's storage, signed rightly, at every node.

There is 1 KB under each of very many keys.
"""

from __future__ import annotations

import asyncio
import time

from attacks.records import nodes, store
from attacks.target import Target
from tests.hostile.flood import junk, mallory

BATCH = 400


async def attack(target: Target) -> None:
    async with mallory(*nodes(target)) as attacker:
        target.on_attack()
        while True:
            items = await asyncio.to_thread(junk, attacker.identity, BATCH, time.time() + 85)
            await store(target, attacker, items)
