"""An uploader: its rate, its places, refusals, and untrusted questions."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from protocols import pieces, services
from protocols.errors import BadRequestError, ConfigError, ModelNotFoundError, OverloadedError, SwarmError
from protocols.ids import ModelId
from protocols.weights import PIECE_BYTES, ManifestRequest
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_tensors
from swarm.weights.slots import MAX_UPLOADS_PER_PEER
from swarm.weights.source import Source
from swarm.weights.terms import Options
from swarm.weights.uploader import SLOWEST_BYTES_S, Uploader
from tests.swarm.weights.parts import Model, local_swarm, make_model


async def test_a_capped_source_keeps_its_rate(tmp_path: Path) -> None:
    """4 MiB at 4 MiB/s with a burst of one: three seconds, as its own clock says, and never less."""
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1, block_bytes=4 * PIECE_BYTES)
        await here.start(model, Uploader(4 * PIECE_BYTES))
        cache = ModelCache(tmp_path / "weights", model.model, model.manifest)
        report = await fetch_tensors(["model.layers.0.mlp.weight"], cache, here.pool, here.sources, Options())
        assert report.seconds >= 0.7


async def test_who_comes_when_the_places_are_taken_is_refused_and_asks_another(tmp_path: Path) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        full = await here.start(model)
        held = [await Source.open(here.pool, full.record, model.model, model.manifest) for _ in range(MAX_UPLOADS_PER_PEER)]
        for source in held:
            await source.holdings()
        refused = await Source.open(here.pool, full.record, model.model, model.manifest)
        with pytest.raises(OverloadedError, match="ask another peer"):
            await refused.holdings()
        await here.start(model)
        cache = ModelCache(tmp_path / "weights", model.model, model.manifest)
        report = await fetch_tensors(model.tensors, cache, here.pool, here.sources, Options())
        assert list(report.from_peer) == [here.givers[1].record.peer] and not report.liars
        for source in held:
            source.close()


def test_a_cap_too_low_to_be_of_use_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.5 Mbit/s"):
        Uploader(SLOWEST_BYTES_S - 1)
    assert Uploader(SLOWEST_BYTES_S)._slots.most == 1


def questions(model: Model) -> list[tuple[str, list[bytes], type[SwarmError]]]:
    mine = pieces.WeightsRequest(model=model.model).encode()
    return [
        ("no model first", [pieces.FileRequest(file=0).encode()], BadRequestError),
        ("another model", [pieces.WeightsRequest(model=ModelId("tiny", "0" * 64)).encode()], ModelNotFoundError),
        ("no tensor", [mine, pieces.HashesRequest(tensors=(1_000,)).encode()], ModelNotFoundError),
        ("no piece", [mine, pieces.PiecesRequest(runs=(pieces.Run(0, 60, 1),)).encode()], ModelNotFoundError),
        ("no file", [mine, pieces.FileRequest(file=63).encode()], ModelNotFoundError),
        ("too much", [mine, pieces.PiecesRequest(runs=(pieces.Run(0, 0, 64), pieces.Run(1, 0, 64))).encode()], BadRequestError),
        ("no question", [b"nonsense"], BadRequestError),
    ]


async def test_odd_questions_are_refused_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        giver = await here.start(model)
        channel = await here.pool.channel(giver.record.peer, giver.record.addresses, giver.record.certificate)
        for what, frames, kind in questions(model):
            stream = await channel.stream(services.PIECES)
            for frame in frames:
                await stream.send(frame)
            with pytest.raises(kind):
                while await stream.receive() is not None:
                    pass
                raise AssertionError(what)
            stream.cancel()


async def test_a_manifest_is_given_by_digest_and_else_by_name(tmp_path: Path) -> None:
    async with asyncio.timeout(60), local_swarm() as here:
        model = make_model(tmp_path / "source", blocks=1)
        giver = await here.start(model)
        channel = await here.pool.channel(giver.record.peer, giver.record.addresses, giver.record.certificate)
        for wanted in (ModelId("other", model.model.digest), ModelId("tiny", "0" * 64)):
            assert await channel.unary(services.MANIFEST, ManifestRequest(model=wanted).encode()) == model.manifest.encode()
        with pytest.raises(ModelNotFoundError, match=r"this peer has tiny, not other"):
            await channel.unary(services.MANIFEST, ManifestRequest(model=ModelId("other", "0" * 64)).encode())
