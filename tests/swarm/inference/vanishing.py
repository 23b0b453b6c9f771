"""A client for a process of its own that a test kills.

`main` gets ADDRESS PEER CERTIFICATE START:STOP for each hop, takes a step over all of them, says "ready", and then waits for ever.
"""

from __future__ import annotations

import asyncio

from protocols.ids import PeerId, Span
from protocols.records import PeerRecord
from tests.hosting import hosted
from tests.swarm.inference.toy import MODEL, NUM_BLOCKS, Records, ToySwarm, ask, random_tokens


def record(address: str, peer: str, certificate: str, span: str) -> PeerRecord:
    start, stop = map(int, span.split(":"))
    served = hosted(MODEL, Span(start, stop), NUM_BLOCKS, free_tokens=1_000, step_ms=1.0)
    return PeerRecord(peer=PeerId(peer), addresses=(address,), certificate=bytes.fromhex(certificate), hosted=served)


class Client(ToySwarm):
    """Knows its nodes by their records only."""

    records: Records

    async def snapshot(self, model_name: str) -> Records:
        return self.records


async def main(arguments: list[str]) -> None:
    client = Client()
    hops = [arguments[at : at + 4] for at in range(0, len(arguments), 4)]
    client.records = Records(tuple(record(*hop) for hop in hops))
    session = client.session()
    await ask(session, (), [3, 2], random_tokens(5))
    print("ready", flush=True)
    await asyncio.Event().wait()
