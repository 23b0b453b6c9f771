"""Downloads over real sockets: liars, deaths, stalls, a full disk, two processes."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from protocols import pieces
from protocols.errors import DiskFullError, ModelNotSupportedError, NoRouteError
from protocols.ids import ModelId
from protocols.weights import PIECE_BYTES, FileEntry
from swarm.checkpoints.tensor_part import TensorPart
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_files, fetch_manifest, fetch_tensors
from swarm.weights.shelf import Shelf
from swarm.weights.source import LyingSourceError, Source
from swarm.weights.terms import Options, Progress
from tests.swarm.weights.parts import Liar, Model, Paused, Scripted, local_swarm, make_model

QUICK = Options(progress_timeout_s=50, stall_s=20)


def at_most(model: Model) -> float:
    """Bytes that a download may fetch: one piece comes twice if its source seems too slow (`planner.py`), and headers cost 1 %."""
    return 1.01 * model.num_bytes + PIECE_BYTES


def run(work) -> None:  # type: ignore[no-untyped-def]
    async def within() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(within())


def cache_of(model: Model, tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "weights", model.model, model.manifest)


def test_manifest_files_and_tensors_come_from_peers_and_open_as_any_directory(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            for _ in range(2):
                await here.start(model)
            manifest = await fetch_manifest(here.pool, await here.sources(), model.model)
            cache = ModelCache(tmp_path / "weights", model.model, manifest)
            directory = await fetch_files(here.pool, await here.sources(), cache)
            for name, content in model.files.items():
                assert (directory / name).read_bytes() == content
            report = await fetch_tensors(model.tensors, cache, here.pool, here.sources, QUICK)
            model.check(cache)
            assert report.fetched_bytes <= at_most(model)
            assert len(report.from_peer) == 2 and all(report.from_peer.values()), "both were asked"

    run(work())


def test_only_the_units_of_the_names_are_fetched(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            await here.start(model)
            cache = cache_of(model, tmp_path)
            report = await fetch_tensors(["model.layers.2.norm.weight"], cache, here.pool, here.sources, QUICK)
            wanted = ["model.layers.2.norm.weight", "model.layers.2.mlp.weight"]
            model.check(cache, wanted)
            assert report.total_bytes == sum(len(model.tensors[name]) for name in wanted)
            assert [path.name for path in cache.directory.glob("*.safetensors*")] and len(
                list(cache.directory.glob("unit*safetensors"))
            ) == 1

    run(work())


def test_an_empty_tensor_is_read_although_nothing_was_fetched(tmp_path: Path) -> None:
    assert cache_of(make_model(tmp_path / "source"), tmp_path).read(TensorPart("model.empty")) == b""


@pytest.mark.parametrize("honest", [0, 5])
def test_a_liar_is_named_and_what_it_owed_comes_from_others(tmp_path: Path, honest: int) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", block_bytes=8 * PIECE_BYTES)
        liar, lied = Liar(), asyncio.Event()
        warnings: list[str] = []

        def warn(text: str) -> None:
            warnings.append(text)
            lied.set()

        liar.honest = honest
        async with local_swarm() as here:
            false = await here.start(model, liar)
            slow = await here.start(model, Paused(0))
            cache = cache_of(model, tmp_path)
            options = Options(progress_timeout_s=50, stall_s=20, on_warning=warn)
            fetching = asyncio.create_task(fetch_tensors(model.tensors, cache, here.pool, here.sources, options))
            await lied.wait()  # the honest one gives nothing before
            assert isinstance(slow.uploader, Paused)
            slow.uploader.release.set()
            report = await fetching
            model.check(cache)
            assert (
                list(report.liars) == [false.record.peer]
                and "wrong piece" in warnings[0]
                and false.record.peer[-6:] in warnings[0]
            )
            assert report.fetched_bytes <= model.num_bytes + 3 * PIECE_BYTES, "a liar costs its window"

    run(work())


def test_a_source_that_dies_half_way_costs_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", block_bytes=8 * PIECE_BYTES)
        async with local_swarm() as here:
            doomed = await here.start(model, Paused(3))
            other = await here.start(model, Paused(3))
            cache = cache_of(model, tmp_path)
            fetching = asyncio.create_task(fetch_tensors(model.tensors, cache, here.pool, here.sources, QUICK))
            assert isinstance(doomed.uploader, Paused) and isinstance(other.uploader, Paused)
            await doomed.uploader.has_stopped.wait()
            await doomed.server.stop()
            other.uploader.release.set()
            report = await fetching
            model.check(cache)
            assert report.fetched_bytes <= at_most(model) and not report.liars

    run(work())


def test_an_idle_source_takes_over_what_a_stalled_one_owes(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", block_bytes=8 * PIECE_BYTES)
        async with local_swarm() as here:
            await here.start(model, Paused(1))
            await here.start(model)
            cache = cache_of(model, tmp_path)
            patient = Options(progress_timeout_s=600, stall_s=600)  # so that it is the endgame that ends this, not the stall
            await fetch_tensors(model.tensors, cache, here.pool, here.sources, patient)  # within the deadline of `run`
            model.check(cache)

    run(work())


def test_pieces_that_are_stored_are_not_fetched_again(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", block_bytes=8 * PIECE_BYTES)
        async with local_swarm() as here:
            await here.start(model)
            first = cache_of(model, tmp_path)
            enough = asyncio.Event()

            def seen(progress: Progress) -> None:
                if progress.done_bytes > model.num_bytes // 2:
                    enough.set()

            fetching = asyncio.create_task(
                fetch_tensors(model.tensors, first, here.pool, here.sources, Options(on_progress=seen))
            )
            await enough.wait()
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            first.close()
            again = cache_of(model, tmp_path)
            report = await fetch_tensors(model.tensors, again, here.pool, here.sources, QUICK)
            model.check(again)
            assert report.resumed_bytes > model.num_bytes // 2
            assert report.fetched_bytes <= model.num_bytes - report.resumed_bytes + PIECE_BYTES // 8

    run(work())


def test_a_damaged_piece_of_an_unfinished_unit_is_fetched_again(tmp_path: Path) -> None:
    """What a power cut or a dying disk leaves: the journal says that a piece is there, and the bytes are others."""

    async def work() -> None:
        model = make_model(tmp_path / "source", blocks=1, block_bytes=8 * PIECE_BYTES)
        async with local_swarm() as here:
            await here.start(model, Paused(5))
            first = cache_of(model, tmp_path)
            fetching = asyncio.create_task(fetch_tensors(model.tensors, first, here.pool, here.sources, QUICK))
            paused = here.givers[0].uploader
            assert isinstance(paused, Paused)
            await paused.has_stopped.wait()
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            first.close()
            paused.release.set()
            [part] = first.directory.glob("*.part")
            with part.open("r+b") as file:
                file.seek(part.stat().st_size - 8 * PIECE_BYTES)  # within the large tensor
                file.write(b"damage")
            again = cache_of(model, tmp_path)
            await fetch_tensors(model.tensors, again, here.pool, here.sources, QUICK)
            model.check(again)

    run(work())


def test_two_downloads_into_one_cache_share_the_work(tmp_path: Path) -> None:
    """As two nodes on one machine: shards are locked one by one, and none is fetched twice."""

    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            await here.start(model)
            one, two = cache_of(model, tmp_path), cache_of(model, tmp_path)
            reports = await asyncio.gather(
                *(fetch_tensors(model.tensors, cache, here.pool, here.sources, QUICK) for cache in (one, two))
            )
            model.check(one)
            model.check(two)
            assert sum(report.fetched_bytes for report in reports) <= 1.05 * model.num_bytes

    run(work())


@pytest.mark.parametrize(("num_sources", "max_sources"), [(1, 8), (3, 2), (3, 8)])
def test_a_shard_that_another_process_gives_up_is_fetched_from_the_same_sources(
    tmp_path: Path, num_sources: int, max_sources: int
) -> None:
    """The second part of one download begins with no place taken."""

    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            for _ in range(num_sources):
                await here.start(model)
            cache, other = cache_of(model, tmp_path), cache_of(model, tmp_path)
            held = cache.layout.shards[-1]
            rest_are_here = asyncio.Event()

            def seen(progress: Progress) -> None:
                if progress.done_bytes >= progress.total_bytes - held.num_bytes:
                    rest_are_here.set()

            options = Options(
                progress_timeout_s=30,
                stall_s=30,
                max_sources=max_sources,
                on_progress=seen,
                pause_s=1_000.0,  # those that came to their end do not come again
            )
            with other.shard(held).locked() as is_mine:
                assert is_mine
                fetching = asyncio.create_task(fetch_tensors(model.tensors, cache, here.pool, here.sources, options))
                await rest_are_here.wait()
            assert sum((await fetching).from_peer.values()) == model.num_bytes
            model.check(cache)

    run(work())


def test_a_download_in_progress_is_a_source_for_its_whole_tensors(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            await here.start(model)
            cache = cache_of(model, tmp_path)
            await fetch_tensors(["model.layers.1.norm.weight"], cache, here.pool, here.sources, QUICK)
            async with local_swarm() as there:
                await there.start(model, shelf=Shelf.of_cache(cache))
                other = ModelCache(tmp_path / "other", model.model, model.manifest)
                await fetch_tensors(["model.layers.1.norm.weight"], other, there.pool, there.sources, QUICK)
                model.check(other, ["model.layers.1.mlp.weight"])
                with pytest.raises(NoRouteError, match=r"no peer gave tensor 'model.layers.2"):
                    await fetch_tensors(
                        ["model.layers.2.norm.weight"], other, there.pool, there.sources, Options(progress_timeout_s=0.1)
                    )

    run(work())


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source")
        async with local_swarm() as here:
            await here.start(model)
            cache = cache_of(model, tmp_path)
            usage = shutil.disk_usage(tmp_path)
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20 << 20))
            with pytest.raises(DiskFullError, match=r"13 MB more are needed, 21 MB are free"):
                await fetch_tensors(model.tensors, cache, here.pool, here.sources, QUICK)

    run(work())


def test_a_download_in_progress_gives_on_the_pieces_that_it_has(tmp_path: Path) -> None:
    """While its only source has stopped; what comes later is given on later, over the same stream."""
    names = ["model.layers.0.mlp.weight"]

    async def work() -> None:
        model, paused, half_way = make_model(tmp_path / "source", blocks=1), Paused(3), asyncio.Event()
        async with local_swarm() as here, local_swarm() as there:
            await here.start(model, paused)
            cache, other = cache_of(model, tmp_path), ModelCache(tmp_path / "other", model.model, model.manifest)
            first = asyncio.create_task(fetch_tensors(names, cache, here.pool, here.sources, QUICK))
            await paused.has_stopped.wait()
            middle = await there.start(model, shelf=Shelf.of_cache(cache))

            def tell(progress: Progress) -> None:
                if progress.done_bytes > PIECE_BYTES:
                    half_way.set()

            options = replace(QUICK, on_progress=tell)
            second = asyncio.create_task(fetch_tensors(names, other, there.pool, there.sources, options))
            await half_way.wait()
            assert not first.done()
            paused.release.set()
            await first
            assert (await second).from_peer == {middle.record.peer: (await second).total_bytes}
            model.check(other, names)

    run(work())


def hostile(model: Model) -> dict[str, object]:
    """Answers that no honest peer gives, by what they are."""
    num = len(model.manifest.entries)
    held = pieces.Holdings(bits=b"\xff" * (num // 8) + bytes([(1 << num % 8) - 1])).encode()

    def with_holdings(*rest: bytes):  # type: ignore[no-untyped-def]
        return lambda request: [held] if isinstance(request, pieces.WeightsRequest) else list(rest)

    return {
        "too many holdings": lambda request: [pieces.Holdings(bits=b"\xff" * 9_000).encode()],
        "bits beyond the tensors": lambda request: [pieces.Holdings(bits=b"\xff" * (num // 8 + 1)).encode()],
        "a huge list of hashes": with_holdings(pieces.Hashes(tensor=3, hashes=bytes(32 * 100_000)).encode()),
        "a wrong list of hashes": with_holdings(pieces.Hashes(tensor=1, hashes=bytes(32 * 4)).encode()),
        "a tensor that is none": with_holdings(pieces.Piece(tensor=150_000, piece=0, data=b"x").encode()),
        "a piece too short": with_holdings(pieces.Piece(tensor=0, piece=0, data=b"x").encode()),
        "a piece that was not asked for": with_holdings(*[pieces.Piece(tensor=1, piece=3, data=bytes(40)).encode()] * 100),
        "no frame": lambda request: [b"nonsense"],
        "a file instead": with_holdings(pieces.FilePart(file=0, size=1, offset=0, data=b"x").encode()),
    }


def test_hostile_answers_are_refused_and_their_sender_named(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", blocks=1)
        for number, (what, answers) in enumerate(hostile(model).items()):
            async with local_swarm() as here:
                false = await here.start(model, Scripted(answers))  # type: ignore[arg-type]
                cache = ModelCache(tmp_path / str(number), model.model, model.manifest)
                report = asyncio.create_task(fetch_tensors(model.tensors, cache, here.pool, here.sources, QUICK))
                await asyncio.sleep(0)
                await here.start(model)
                assert list((await report).liars) == [false.record.peer], what
                model.check(cache)
                assert (await report).fetched_bytes < model.num_bytes + 4 * PIECE_BYTES, what

    run(work())


LARGE = 2
"""In a model of one block: the tensor of four pieces."""


@pytest.mark.parametrize(
    ("partial", "why"),
    [
        (b"\0\0\x01\0\x01", "got 256 after -1"),
        (pieces.pack_partial({LARGE: b"\x10"}), "a bitmap of 4 bits"),
        (pieces.pack_partial({LARGE: b"\x01"}) * 2, "got 2 after 2"),
        (pieces.pack_partial({LARGE: b"\x01"})[:-1], "end at byte 5 of the holdings, which have 4"),
        (pieces.pack_partial({0: b"\x01"}), "tensor 0 is said to be here whole, and in part"),
        (b"\0\0\0\0\x01" * 200_000, "got 0 after 0"),
        (bytes((1 << 20) + 1), "at most 1048576 bytes"),
    ],
)
async def test_holdings_of_pieces_that_no_honest_peer_has_are_refused(partial: bytes, why: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "source", blocks=1)
    assert model.manifest.entries[LARGE].num_pieces == 4
    async with asyncio.timeout(60), local_swarm() as here:
        answer = pieces.Holdings(bits=b"\x01", partial=partial).encode()
        false = await here.start(model, Scripted(lambda request: [answer]))
        source = await Source.open(here.pool, false.record, model.model, model.manifest)
        with pytest.raises(LyingSourceError, match=why):
            await source.holdings()
        source.close()


def test_a_false_file_is_refused_and_taken_from_another(tmp_path: Path) -> None:
    async def work() -> None:
        model = make_model(tmp_path / "source", blocks=1)

        def endless(request: pieces.Request) -> list[bytes]:
            if isinstance(request, pieces.FileRequest):
                part = bytes(PIECE_BYTES)
                return [
                    pieces.FilePart(file=request.file, size=part_size, offset=0, data=part).encode()
                    for part_size in [2 << 20] * 9
                ]
            return [pieces.Holdings(bits=bytes(-(-len(model.manifest.entries) // 8))).encode()]

        async with local_swarm() as here:
            await here.start(model, Scripted(endless))
            await here.start(model)
            cache = cache_of(model, tmp_path)
            directory = await fetch_files(here.pool, await here.sources(), cache)
            assert (directory / "tokenizer.json").read_bytes() == model.files["tokenizer.json"]

    run(work())


def test_only_known_files_are_taken_from_a_peer(tmp_path: Path) -> None:
    """What the digest covers may still be hostile: a file of code beside the tokenizer is never asked for."""

    async def work() -> None:
        model = make_model(tmp_path / "source", blocks=1)
        manifest = replace(model.manifest, files=(FileEntry("modeling_evil.py", bytes(32)),))
        async with local_swarm() as here:
            await here.start(model)
            cache = ModelCache(tmp_path / "weights", ModelId("evil", manifest.digest), manifest)
            with pytest.raises(ModelNotSupportedError, match=r"'modeling_evil.py'; only tokenizer files"):
                await fetch_files(here.pool, await here.sources(), cache)
            assert not list(cache.directory.glob("*.py"))

    run(work())


def test_a_manifest_of_other_weights_is_refused_and_taken_from_another(tmp_path: Path) -> None:
    async def work() -> None:
        model, other = make_model(tmp_path / "source"), make_model(tmp_path / "other", blocks=2)
        async with local_swarm() as here:
            await here.start(model, shelf=Shelf(model.model, other.manifest, lambda tensor: None, tmp_path))
            with pytest.raises(NoRouteError, match=r"sent the manifest of"):
                await fetch_manifest(here.pool, await here.sources(), model.model)
            await here.start(model)
            assert await fetch_manifest(here.pool, await here.sources(), model.model) == model.manifest

    run(work())
