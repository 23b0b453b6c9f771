"""Requests of 60 MB that never end, without any credential.

They are sent over HTTP/2 as far as the node's windows allow.
"""

from __future__ import annotations

import asyncio
import contextlib

from attacks.target import Target
from tests.hostile.raw import RawCaller

STREAMS = 8
HOLD_S = 30.0


async def attack(target: Target) -> None:
    target.on_attack()
    await asyncio.gather(*(asyncio.to_thread(_hold, target, place.grpc) for place in target.places))


def _hold(target: Target, address: str) -> None:
    """One connection after the other; the process ends with the attack."""
    while True:
        with contextlib.suppress(OSError):
            caller = RawCaller(address)
            target.arrived["connections"] += 1
            for _ in range(STREAMS):
                caller.begin("/murmuration.v1/hello")
            caller.pour(60 << 20, 59 << 20, HOLD_S)
            caller.close()
