"""A peer that really fetches gets one of an uploader's places."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from protocols import pieces, services
from protocols.errors import OverloadedError, SwarmError
from protocols.identity import from_seed
from protocols.weights import PIECE_BYTES, ManifestRequest
from swarm.rpc import ChannelPool
from swarm.rpc.stream import Stream
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_tensors
from swarm.weights.terms import Options
from swarm.weights.uploader import MAX_UPLOADS, Uploader, UploadLimits
from tests.swarm.weights.parts import Giver, Model, local_swarm, make_model


class Attacker:
    """One identity with two streams that it opens again and again."""

    def __init__(self, number: int, giver: Giver, model: Model) -> None:
        self.pool = ChannelPool(from_seed(hashlib.sha256(b"attacker %d" % number).digest()))
        self.giver, self.model = giver, model
        self.num_held = 0
        """Streams that had a place."""
        self.streams: set[Stream] = set()

    async def hold(self, *, reads: bool) -> None:
        """Ask for something, and keep the place: by small questions now and then, or by not reading what was asked for."""
        while True:
            with contextlib.suppress(SwarmError):
                record = self.giver.record
                channel = await self.pool.channel(record.peer, record.addresses, record.certificate)
                stream = await channel.stream(services.PIECES)
                self.streams.add(stream)
                try:
                    await self._use(stream, reads=reads)
                finally:
                    self.streams.discard(stream)
                    stream.cancel()
            await asyncio.sleep(0.05)

    async def _use(self, stream: Stream, *, reads: bool) -> None:
        question = pieces.WeightsRequest(model=self.model.model).encode()
        await stream.send(question)
        await stream.receive()
        self.num_held += 1
        if not reads:
            tensor = next(n for n, entry in enumerate(self.model.manifest.entries) if entry.num_pieces >= 48)
            await stream.send(pieces.PiecesRequest(runs=(pieces.Run(tensor, 0, 48),)).encode())
            await asyncio.sleep(3_600)
        while True:
            await asyncio.sleep(20)
            await stream.send(question)
            await stream.receive()


async def until(is_so: Callable[[], bool]) -> None:
    """Within the deadline of the test."""
    while not is_so():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def holding(giver: Giver, model: Model, *, reads: bool) -> AsyncIterator[list[Attacker]]:
    """As many streams as there are places, by identities with two each; all hold a place when this begins."""
    attackers = [Attacker(number, giver, model) for number in range(MAX_UPLOADS // 2)]
    tasks = [asyncio.create_task(one.hold(reads=reads)) for one in attackers for _ in range(2)]
    try:
        await until(lambda: giver.uploader._slots.num_held >= MAX_UPLOADS)
        yield attackers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in attackers:
            await one.pool.close()


@pytest.mark.parametrize("reads", [True, False], ids=["a question now and then", "nothing is read"])
async def test_places_that_are_not_used_go_to_who_fetches(tmp_path: Path, *, reads: bool) -> None:
    """Four identities held all eight places with a question every 20 s; each further peer was refused for ever."""
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=2, block_bytes=48 * PIECE_BYTES)
        giver = await here.start(model)
        async with holding(giver, model, reads=reads) as attackers:
            cache = ModelCache(tmp_path / "weights", model.model, model.manifest)
            report = await fetch_tensors(model.tensors, cache, here.pool, here.sources, Options(progress_timeout_s=50))
            model.check(cache)
            assert list(report.from_peer) == [giver.record.peer]
            assert sum(one.num_held for one in attackers) >= MAX_UPLOADS, "the attack took place"


async def test_a_receiver_that_does_not_read_is_cut_off_though_nobody_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its call is over then, also for the transport, and our log has no traceback of it."""
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1, block_bytes=48 * PIECE_BYTES)
        giver = await here.start(model, Uploader(limits=UploadLimits(send_s=0.5)))
        attacker = Attacker(0, giver, model)
        task = asyncio.create_task(attacker.hold(reads=False))
        try:
            await until(lambda: attacker.num_held > 0)
            await until(lambda: giver.uploader._slots.num_held == 0)
            assert giver.uploader.sent_bytes < 40 * PIECE_BYTES
            [stream] = attacker.streams
            with pytest.raises(SwarmError):
                while await stream.receive() is not None:
                    pass
            assert not [record for record in caplog.records if record.exc_info]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await attacker.pool.close()


async def test_manifests_are_counted_by_network(tmp_path: Path) -> None:
    """A peer that asks again and again is refused; its account is filled again with time."""
    now_s = 0.0
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        limits = UploadLimits(manifests_bytes=4 * len(model.manifest.encode()))
        giver = await here.start(model, Uploader(clock=lambda: now_s, limits=limits))
        channel = await here.pool.channel(giver.record.peer, giver.record.addresses, giver.record.certificate)
        request = ManifestRequest(model=model.model).encode()
        for _ in range(4):
            assert await channel.unary(services.MANIFEST, request) == model.manifest.encode()
        with pytest.raises(OverloadedError, match="from your network too often"):
            await channel.unary(services.MANIFEST, request)
        now_s = 60.0
        assert await channel.unary(services.MANIFEST, request) == model.manifest.encode()
