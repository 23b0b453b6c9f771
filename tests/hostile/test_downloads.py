"""Downloads end among sources that are silent, slow, or lie.

The wanted pieces come from the honest ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import pieces
from protocols.errors import CheckpointError, DiskFullError, ModelMismatchError, NoRouteError
from protocols.identity import from_seed
from protocols.ids import ModelId
from protocols.records import PeerRecord
from protocols.weights import Manifest, TensorEntry
from swarm.checkpoints.layout import Layout
from swarm.rpc import Call, Stream, tls
from swarm.weights import asking
from swarm.weights.asking import AT_ONCE
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_files, fetch_manifest, fetch_tensors
from swarm.weights.reputation import Reputation
from swarm.weights.terms import MAX_SOURCES, Options
from swarm.weights.uploader import Uploader
from tests.swarm.weights.parts import CONFIG, LocalSwarm, Model, local_swarm, make_model

SEED = 20261128


class Swallower(Uploader):
    """Says that it has everything, and sends nothing of it."""

    async def give_manifest(self, request: bytes, call: Call) -> bytes:
        await asyncio.sleep(3_600)
        raise AssertionError

    async def give(self, stream: Stream, call: Call) -> None:
        while (data := await stream.receive()) is not None:
            if isinstance(pieces.parse_request(data), pieces.WeightsRequest):
                [shelf] = self._shelves.values()
                await stream.send(shelf.holdings().encode())


class Dripper(Uploader):
    """Sends right answers, each ten minutes late, and files byte by byte."""

    async def give_manifest(self, request: bytes, call: Call) -> bytes:
        await asyncio.sleep(600)
        return await super().give_manifest(request, call)

    async def _send(self, stream: Stream, frame: bytes) -> None:
        answer = pieces.parse_answer(frame)
        if isinstance(answer, pieces.FilePart):
            for at in range(len(answer.data)):
                part = pieces.FilePart(file=answer.file, size=answer.size, offset=at, data=bytes(answer.data[at : at + 1]))
                await super()._send(stream, part.encode())
                await asyncio.sleep(1)
        if isinstance(answer, pieces.Piece):
            await asyncio.sleep(600)
        await super()._send(stream, frame)


@contextlib.asynccontextmanager
async def silent_first(num: int, honest: PeerRecord) -> AsyncIterator[list[PeerRecord]]:
    """Records at addresses that take connections and say nothing, whose PeerIDs sort before that of the honest peer."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3_600)

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found: list[PeerRecord] = []
    for seed in range(1_000, 100_000):
        identity = from_seed(hashlib.sha256(f"{SEED} {seed}".encode()).digest())
        if identity.peer_id < honest.peer:
            certificate = tls.make(identity).der
            found.append(replace(honest, peer=identity.peer_id, addresses=(f"127.0.0.1:{port}",), certificate=certificate))
        if len(found) == num:
            break
    try:
        yield found
    finally:
        server.close()


async def sources_of(records: Sequence[PeerRecord]) -> Sequence[PeerRecord]:
    return sorted(records, key=lambda record: record.peer)


async def fetched(here: LocalSwarm, records: Sequence[PeerRecord], model: Model, root: Path, options: Options) -> None:
    """Manifest, files and tensors, as a client fetches them."""
    draw = random.Random(SEED).random
    records = await sources_of(records)
    reputation = Reputation(here.pool.is_connected)
    manifest = await fetch_manifest(here.pool, records, model.model, reputation, draw)
    cache = ModelCache(root, model.model, manifest)
    await fetch_files(here.pool, records, cache, reputation, draw)
    await fetch_tensors(model.tensors, cache, here.pool, lambda: sources_of(records), replace(options, reputation=reputation))
    model.check(cache)
    for name, content in model.files.items():
        assert (cache.directory / name).read_bytes() == content


async def test_peer_ids_that_sort_first_do_not_block_a_download(tmp_path: Path) -> None:
    """Twelve of them: more than are asked at once. Before, the first eight in PeerID order were asked, one after the other."""
    print("seed:", SEED)
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=2)
        honest = await here.start(model)
        async with silent_first(12, honest.record) as silent:
            assert len(silent) == 12 and all(one.peer < honest.record.peer for one in silent)
            await fetched(here, [*silent, honest.record], model, tmp_path / "weights", Options(progress_timeout_s=50))


async def hostile_swarm(here: LocalSwarm, model: Model, make: Callable[[], Uploader], num: int) -> list[PeerRecord]:
    return [(await here.start(model, make())).record for _ in range(num)]


@pytest.mark.parametrize("make", [Swallower, Dripper])
async def test_sources_that_give_nothing_or_drip_lose_their_places(tmp_path: Path, make: Callable[[], Uploader]) -> None:
    """As many as there are places, all of them real servers that announce everything; one honest source among them."""
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=2)
        hostile = await hostile_swarm(here, model, make, max(MAX_SOURCES, AT_ONCE))
        honest = await here.start(model)
        options = Options(progress_timeout_s=50, max_sources=MAX_SOURCES)
        await fetched(here, [*hostile, honest.record], model, tmp_path / "weights", options)
        assert honest.uploader.sent_bytes > model.num_bytes * 0.8


async def test_who_has_delivered_before_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        hostile = await hostile_swarm(here, model, Swallower, 5)
        honest = await here.start(model)
        reputation = Reputation(here.pool.is_connected)
        await fetch_manifest(here.pool, [honest.record], model.model, reputation)
        monkeypatch.setattr(asking, "JOIN_S", (600.0, 600.0, 600.0))  # so the first that is asked is the only one
        await fetch_manifest(here.pool, [*hostile, honest.record], model.model, reputation, lambda: 0.0)


async def test_a_directory_that_says_nothing_ends_with_the_patience(tmp_path: Path) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        cache = ModelCache(tmp_path / "weights", model.model, model.manifest)

        async def never() -> Sequence[PeerRecord]:
            await asyncio.sleep(3_600)
            raise AssertionError

        with pytest.raises(NoRouteError, match=r"no peer gave tensor .* for [0-9]+ s"):
            await fetch_tensors(model.tensors, cache, here.pool, never, Options(progress_timeout_s=1))


async def test_a_file_that_comes_byte_by_byte_is_a_lie(tmp_path: Path) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        await here.start(model, Dripper())
        cache = ModelCache(tmp_path / "weights", model.model, model.manifest)
        with pytest.raises(NoRouteError, match=r"1 bytes at 0 of file 0 where byte 0 of file 0 was due|1 bytes at 0 of file"):
            await fetch_files(here.pool, await here.sources(), cache)
        assert not list(cache.directory.glob("**/.*")), "nothing is left of what came"


def large_manifest(num: int) -> Manifest:
    entries = tuple(TensorEntry(f"model.layers.0.t{number:06}", "U8", (1,), bytes(32)) for number in range(num))
    return Manifest(entries, CONFIG)


def test_a_manifest_is_hashed_before_a_word_of_it_is_read() -> None:
    """A liar's manifest was parsed first: one of 200,000 tensors took 2.3 s and 293 MB."""
    frame = large_manifest(40_000).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ModelMismatchError, match="not that of 000000000000"):
            Manifest.parse(frame, "0" * 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(frame) > 3_000_000 and peak < 1_000_000, peak


@pytest.mark.parametrize("shape", [(10**15 - 1,) * 8, (1 << 40,), (1 << 20, 1 << 20)])
def test_a_model_of_absurd_sizes_is_refused_before_anything_is_reserved(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """4,000 tensors of a tebibyte each needed 500 MB for the bitmaps of their pieces before the disk was looked at."""
    entries = tuple(TensorEntry(f"model.layers.0.t{number:06}", "U8", shape, bytes(32)) for number in range(4_000))
    manifest = Manifest(entries, CONFIG)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"not that of an honest model|can be fetched"):
            ModelCache(tmp_path, ModelId("huge", manifest.digest), manifest).check_room(Layout(manifest).whole([entries[0].name]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20, peak
    assert not list(tmp_path.glob("**/unit*"))


def test_the_bound_of_sizes_is_above_what_is_served() -> None:
    """405 billion values in float32, all in one tensor."""
    entries = (TensorEntry("model.layers.0.w", "F32", (405_000_000_000,), bytes(32)),)
    assert Layout(Manifest(entries, CONFIG)).shards[0].num_bytes > 10**12


async def test_a_model_larger_than_the_user_allows_is_refused_before_anything_is_reserved(tmp_path: Path) -> None:
    """What is announced may be huge, and the disk free: the user's limit counts all that was fetched before."""
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source")
        await here.start(model)
        cache = ModelCache(tmp_path / "weights", model.model, model.manifest)
        limited = Options(progress_timeout_s=50, disk_bytes=8_000_000)
        with pytest.raises(DiskFullError, match=r"needs 13 MB more .* may take 8 MB \(--disk-gb\)"):
            await fetch_tensors(model.tensors, cache, here.pool, here.sources, limited)
        assert not list(cache.directory.glob("unit*.part"))
        name = "model.layers.0.mlp.weight"
        await fetch_tensors([name], cache, here.pool, here.sources, limited)
        model.check(cache, [name])
        with pytest.raises(DiskFullError, match="which holds 3 MB"):
            await fetch_tensors(model.tensors, cache, here.pool, here.sources, limited)
