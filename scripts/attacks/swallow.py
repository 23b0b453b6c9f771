"""Hostile nodes that take every step and answer nothing.

Hello is answered by the real code.
"""

from __future__ import annotations

from attacks.hostile_node import announce
from attacks.target import Target
from swarm.rpc import Call
from swarm.rpc.stream import Stream


async def _swallow(stream: Stream, call: Call) -> None:
    while await stream.receive() is not None:
        pass


async def attack(target: Target) -> None:
    await announce(target, _swallow)
