"""A swarm that is only announced, for pages of any size."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import uvicorn
from fastapi import FastAPI

from node.dashboard.dashboard import Dashboard
from node.gateway import page, server
from node.watching.watcher import Watcher
from protocols.errors import PeerUnreachableError
from protocols.identity import from_seed
from protocols.ids import ModelId, PeerId, Span
from protocols.records import PeerRecord
from swarm.directory.snapshot import Snapshot
from swarm.rpc.pool import ChannelPool
from swarm.suggestion import NodeCommand
from tests.hosting import hosted

MODEL = ModelId("tiny", "ab" * 32)


def made_record(number: int, span: Span, num_blocks: int, name: str, **load: float) -> PeerRecord:
    """A node of MODEL, with a PeerID of its own."""
    peer = from_seed(number.to_bytes(32, "big")).peer_id
    units = hosted(MODEL, span, num_blocks, ends=span.start == 0 or span.stop == num_blocks, **{"free_tokens": 100_000, **load})
    return PeerRecord(
        peer=peer, name=name, software="murmuration 0.1.0", hosted=units, addresses=("192.0.2.1:4001",), reachable=True
    )


def many(num_peers: int, num_blocks: int, blocks_each: int = 16) -> list[PeerRecord]:
    """So many nodes over so many blocks, evenly."""
    starts = range(0, num_blocks - blocks_each + 1, blocks_each)
    spans = [Span(starts[at % len(starts)], starts[at % len(starts)] + blocks_each) for at in range(num_peers)]
    return [made_record(at + 1, span, num_blocks, f"node-{at:03}", step_ms=3.0) for at, span in enumerate(spans)]


@dataclass(slots=True)
class MadeSource:
    """A `Source` of the watcher over records that a test may change."""

    records: list[PeerRecord]
    silent: set[PeerId] = field(default_factory=set)
    rng: random.Random | None = None
    """If given, loads change at each look, as those of a busy swarm do."""

    @property
    def directory(self) -> MadeSource:
        return self

    @property
    def pool(self) -> ChannelPool:
        raise PeerUnreachableError("there are no nodes")

    async def models(self) -> dict[str, int]:
        return {MODEL.name: len(self.records)}

    async def snapshot(self, model: str) -> Snapshot:
        if self.rng is not None:
            self.records = [self._busier(record, self.rng) for record in self.records]
        return Snapshot(model, tuple(self.records), 0.0)

    async def ping(self, record: PeerRecord) -> float:
        if record.peer in self.silent:
            raise PeerUnreachableError("it does not answer")
        return 1.0 + len(record.name) / 10 if self.rng is None else self.rng.uniform(1, 90)

    @contextlib.asynccontextmanager
    async def met(self) -> AsyncIterator[MadeSource]:
        yield self

    @staticmethod
    def _busier(record: PeerRecord, rng: random.Random) -> PeerRecord:
        units = tuple(replace(one, load=replace(one.load, queue=rng.choice((0, 0, 1, 3, 9)))) for one in record.hosted)
        return replace(record, hosted=units)


@contextlib.contextmanager
def serving(source: MadeSource, more: Callable[[Dashboard], None] = lambda dashboard: None) -> Iterator[str]:
    """The address of the page, served in a thread of its own."""
    app, listening = FastAPI(), server.bound("127.0.0.1", 0)
    dashboard = Dashboard(watcher=Watcher(source.met), swarm="made", hosting=NodeCommand(peer="/ip4/192.0.2.1/tcp/4000/p2p/12D3"))
    more(dashboard)
    door = page.mount(app, dashboard)
    made = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="websockets-sansio", timeout_graceful_shutdown=1)
    )

    is_warm = threading.Event()

    async def run() -> None:
        task = asyncio.create_task(made.serve([listening]))
        while not made.started and not task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await door.warm()
        is_warm.set()
        await task
        await dashboard.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    assert is_warm.wait(60)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{page.PAGE}/"
    finally:
        made.should_exit = True
        thread.join(60)
        listening.close()


def peers_of(records: Sequence[PeerRecord]) -> list[PeerId]:
    return [record.peer for record in records]
