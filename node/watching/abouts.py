"""Asks a peer about its machine and work; tells it in words."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from node.training.amounts import duration, size
from protocols import services
from protocols.about import About, AboutRequest, Trained
from protocols.errors import DeadlineError
from protocols.ids import short_peer
from protocols.records import PeerRecord
from protocols.words import counted, one_line
from swarm.rpc.pool import ChannelPool

ASK_S = 3.0
"""How long a peer may take to say it."""


async def ask(pool: ChannelPool, record: PeerRecord) -> About:
    """SwarmError if it does not answer in time, or, as peers of version 0.1, does not know the question."""
    try:
        async with asyncio.timeout(ASK_S):
            channel = await pool.channel(record.peer, record.addresses, record.certificate)
            return About.parse(await channel.unary(services.ABOUT, AboutRequest().encode(), ASK_S))
    except TimeoutError:
        raise DeadlineError(f"peer {short_peer(record.peer)} did not say within {ASK_S:.0f} s what it is") from None


def machine(about: About) -> Iterator[tuple[str, str]]:
    """Names and texts, each one line that is safe to show."""
    one = about.machine
    name = f" ({one_line(one.name)})" if one.name else ""
    yield "device", one_line(one.device) + name
    yield "system", one_line(one.system) or "not said"
    yield "cores", str(one.cores) if one.cores else "not said"
    yield "memory", size(one.memory_bytes) if one.memory_bytes else "not said"
    if one.device_bytes:
        yield "memory of the device", size(one.device_bytes)
    yield "free for blocks and sessions", size(about.free_bytes)


def work(about: About) -> Iterator[tuple[str, str]]:
    """What it has done since its start."""
    yield "runs for", duration(about.uptime_s)
    amounts = (about.num_sessions, "session"), (about.num_steps, "step"), (about.num_tokens, "token")
    yield "served", ", ".join(counted(number, noun, is_grouped=True) for number, noun in amounts)
    for one in about.trained:
        yield f"trained {one_line(one.run.name)}", _trained(one)


def _trained(one: Trained) -> str:
    amounts = (one.num_micro_batches, "micro-batch"), (one.num_tokens, "token"), (one.num_versions, "version")
    told = ", ".join(counted(number, noun, is_grouped=True) for number, noun in amounts)
    return f"{told} in {duration(one.seconds)}, as {one.role}"
