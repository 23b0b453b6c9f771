"""Experts and partitions, fetched alone: exact, and few more bytes."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from protocols.errors import BadRequestError, CheckpointError, DiskFullError, ModelNotFoundError, ModelNotSupportedError
from protocols.ids import ModelId
from protocols.pieces import Holdings
from protocols.units import Blocks, Ends, Expert, Partition, Unit
from protocols.weights import PIECE_BYTES
from swarm.checkpoints.digest import build_manifest
from swarm.checkpoints.layout import Shard
from swarm.checkpoints.numbered import expert_counts
from swarm.checkpoints.tensor_part import TensorPart, byte_ranges
from swarm.checkpoints.unit_parts import StoredModel, parts_of
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.loading import stored_names
from swarm.rpc.call import Call
from swarm.rpc.stream import Stream
from swarm.weights.cache import ModelCache
from swarm.weights.fetch import fetch_parts, fetch_tensors
from swarm.weights.shard_file import ShardFile
from swarm.weights.shelf import Shelf
from swarm.weights.terms import Options, Report
from swarm.weights.uploader import Uploader
from tests.swarm.weights.parts import Liar, LocalSwarm, Model, local_swarm

QUICK = Options(progress_timeout_s=50, stall_s=20)
CONFIG: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=256,
    num_hidden_layers=2,
    num_attention_heads=64,
    head_dim=64,
    num_key_value_heads=2,
    num_experts_per_tok=2,
)
FORMS = ["mixtral fused", "mixtral unfused", "qwen3_moe fused"]


@dataclass(frozen=True)
class Source:
    """A checkpoint on the disk, and the values that its tensors should have."""

    checkpoint: Checkpoint
    stored: StoredModel
    served: Model
    state: dict[str, Tensor]

    def shelf(self) -> Shelf:
        return Shelf.of_directory(self.served.model, self.served.manifest, self.checkpoint.tensors, self.checkpoint.path)

    def cache(self, folder: Path) -> ModelCache:
        return ModelCache(folder, self.served.model, self.served.manifest)

    def range_bytes(self, parts: Sequence[TensorPart]) -> int:
        return sum(byte_ranges(self.checkpoint.tensors[part.name], part.cut).num_bytes for part in parts)

    def list_bytes(self, parts: Sequence[TensorPart]) -> int:
        """Of the hashes that have to come with them."""
        entries = {entry.name: entry for entry in self.served.manifest.entries}
        return sum(32 * entries[name].num_pieces for name in {part.name for part in parts})


def made(family: str) -> Any:
    torch.manual_seed(3)
    if family == "mixtral":
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**CONFIG, num_local_experts=8, intermediate_size=520))
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**CONFIG, num_experts=8, moe_intermediate_size=520))


def saved(model: Any, folder: Path, form: str) -> Source:
    model.save_pretrained(folder, save_original_format=form.endswith("unfused"))
    checkpoint = open_checkpoint(folder)
    manifest = build_manifest(checkpoint, None)
    stored = StoredModel(
        tensors=checkpoint.tensors,
        prefix=checkpoint.block_prefix,
        expert_counts=expert_counts(checkpoint.raw_config),
        ends=tuple(stored_names(checkpoint, Ends())),
    )
    return Source(checkpoint, stored, Model({}, {}, manifest, ModelId(form, manifest.digest), folder), model.state_dict())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    models = {family: made(family) for family in ("mixtral", "qwen3_moe")}
    return {form: saved(models[form.split()[0]], tmp_path_factory.mktemp("checkpoint"), form) for form in FORMS}


def run(work: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await work

    asyncio.run(within())


async def fetched(here: LocalSwarm, source: Source, unit: Unit, cache: ModelCache) -> tuple[dict[str, Tensor], Report]:
    """The unit's values, by the tensors that they are cut from."""
    parts = parts_of(unit, source.stored)
    report = await fetch_parts(parts, cache, here.pool, here.sources, QUICK)
    return {part.name: torch.frombuffer(bytearray(cache.read(part)), dtype=torch.float32) for part in parts}, report


def expected_of_expert(source: Source, layer: int, index: int) -> dict[str, Tensor]:
    """From the model that was saved, in whose memory experts are fused."""
    gate_up, down = (source.state[f"model.layers.{layer}.mlp.experts.{name}"][index] for name in ("gate_up_proj", "down_proj"))
    if source.served.model.name.endswith(" fused"):
        return {f"model.layers.{layer}.mlp.experts.gate_up_proj": gate_up, f"model.layers.{layer}.mlp.experts.down_proj": down}
    cut = {"w1": gate_up[:520], "w2": down, "w3": gate_up[520:]}
    return {f"model.layers.{layer}.block_sparse_moe.experts.{index}.{name}.weight": value for name, value in cut.items()}


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name].flatten()) for name in expected)


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_fetched_alone_has_the_right_bits_and_few_bytes_more(
    form: str, sources: dict[str, Source], tmp_path: Path
) -> None:
    source, unit = sources[form], Expert(1, 3)
    parts = parts_of(unit, source.stored)

    async def work() -> None:
        async with local_swarm() as here:
            giver = await here.start(source.served, shelf=source.shelf())
            cache = source.cache(tmp_path)
            found, report = await fetched(here, source, unit, cache)
            assert equal(found, expected_of_expert(source, 1, 3))
            of_pieces, wanted = sum(report.from_peer.values()), source.range_bytes(parts)
            whole = sum(source.range_bytes([TensorPart(part.name)]) for part in parts)
            assert wanted <= of_pieces == report.total_bytes <= wanted + 2 * PIECE_BYTES * len(parts)
            if form.endswith(" fused"):
                assert of_pieces < whole * 0.7, "the rest of the fused tensors stayed where it was"
            else:
                assert of_pieces == wanted == whole
            around = giver.uploader.sent_bytes - of_pieces
            assert around <= source.list_bytes(parts) + 8_192, "lists of hashes, and the headers of messages"
            [part_file] = cache.directory.glob("unit-*.part")
            assert part_file.stat().st_blocks * 512 <= of_pieces + 64 * 1024, "no disk was taken for what is not here"
            assert not list(cache.directory.glob("unit-*.safetensors"))

    run(work())


def test_what_is_here_is_not_fetched_again_by_an_expert_a_block_or_another_process(
    sources: dict[str, Source], tmp_path: Path
) -> None:
    source = sources["mixtral fused"]

    async def work() -> None:
        async with local_swarm() as here:
            await here.start(source.served, shelf=source.shelf())
            _, first = await fetched(here, source, Expert(1, 3), source.cache(tmp_path))
            again = source.cache(tmp_path)
            found, second = await fetched(here, source, Expert(1, 3), again)
            assert second.fetched_bytes == 0 and equal(found, expected_of_expert(source, 1, 3))
            with pytest.raises(CheckpointError, match="not in the cache; fetch the part first"):
                again.read(parts_of(Expert(1, 6), source.stored)[0])
            names = [part.name for part in parts_of(Blocks(1, 2), source.stored)]
            rest = await fetch_tensors(names, again, here.pool, here.sources, QUICK)
            assert rest.resumed_bytes == first.total_bytes
            assert sum(rest.from_peer.values()) == rest.total_bytes - first.total_bytes
            assert [path.suffix for path in again.directory.glob("unit-*") if path.suffix != ".lock"] == [".safetensors"]
            found, third = await fetched(here, source, Expert(1, 6), source.cache(tmp_path))
            assert third.fetched_bytes == 0 and equal(found, expected_of_expert(source, 1, 6))

    run(work())


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_part_that_is_damaged_between_two_fetches_is_not_read(
    is_removed: bool, sources: dict[str, Source], tmp_path: Path
) -> None:
    """One process fetches twice into one shard, and something happens to its file meanwhile."""
    source = sources["mixtral fused"]

    async def work() -> None:
        async with local_swarm() as here:
            await here.start(source.served, shelf=source.shelf())
            cache = source.cache(tmp_path)
            await fetched(here, source, Expert(1, 3), cache)
            _damage(cache, parts_of(Expert(1, 3), source.stored)[0], is_removed)
            found, _ = await fetched(here, source, Expert(1, 6), cache)
            assert equal(found, expected_of_expert(source, 1, 6))
            with pytest.raises(CheckpointError, match="not in the cache; fetch the part first"):
                cache.read(parts_of(Expert(1, 3), source.stored)[0])
            found, _ = await fetched(here, source, Expert(1, 3), cache)
            assert equal(found, expected_of_expert(source, 1, 3))

    run(work())


def start_in(shard: Shard, tensor: int) -> int:
    """Where a tensor begins in the shard's file."""
    return dict(zip(shard.tensors, shard.starts, strict=True))[tensor]


def _damage(cache: ModelCache, part: TensorPart, is_removed: bool) -> None:
    """Flip a byte of the part, or remove the file that it is in."""
    number = cache.layout.number(part.name)
    file = cache.shard(cache.layout.shard_of[number])
    if is_removed:
        file.part.unlink()
        return
    first = start_in(file.shard, number) + byte_ranges(cache.manifest.entries[number], part.cut).first
    with file.part.open("r+b") as opened:
        opened.seek(first)
        [byte] = opened.read(1)
        opened.seek(first)
        opened.write(bytes([byte ^ 1]))


def test_a_part_is_read_while_another_download_finishes_its_shard(
    sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file gets its final name after the reader has seen that it is not complete."""
    source = sources["mixtral fused"]

    async def work() -> None:
        async with local_swarm() as here:
            await here.start(source.served, shelf=source.shelf())
            cache = source.cache(tmp_path)
            await fetched(here, source, Expert(1, 3), cache)
            names = [part.name for part in parts_of(Blocks(1, 2), source.stored)]
            await fetch_tensors(names, source.cache(tmp_path), here.pool, here.sources, QUICK)
            monkeypatch.setattr(ShardFile, "is_complete", False)
            read = {part.name: cache.read(part) for part in parts_of(Expert(1, 3), source.stored)}
            assert read == {name: value.numpy().tobytes() for name, value in expected_of_expert(source, 1, 3).items()}

    run(work())


@pytest.mark.parametrize("limit", ["disk", "--disk-gb"])
def test_a_part_that_is_here_needs_no_disk_space_in_another_process(
    limit: str, sources: dict[str, Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources["mixtral fused"]

    async def work() -> None:
        async with local_swarm() as here:
            await here.start(source.served, shelf=source.shelf())
            _, first = await fetched(here, source, Expert(1, 3), source.cache(tmp_path))
            usage, parts = shutil.disk_usage(tmp_path), parts_of(Expert(1, 3), source.stored)
            if limit == "disk":
                monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
            options = Options(progress_timeout_s=50, stall_s=20, disk_bytes=1 << 20 if limit == "--disk-gb" else 0)
            again = await fetch_parts(parts, source.cache(tmp_path), here.pool, here.sources, options)
            assert again.fetched_bytes == 0 and again.resumed_bytes == first.total_bytes
            with pytest.raises(DiskFullError):
                await fetch_parts(parts_of(Expert(1, 6), source.stored), source.cache(tmp_path), here.pool, here.sources, options)

    run(work())


@pytest.mark.parametrize(
    ("unit", "num_pieces"),
    [
        (Partition(0, "self_attn.q_proj", "rows", 1_100, 2_000), 1),
        (Partition(0, "self_attn.q_proj", "rows", 1_000, 1_100), 2),
        (Partition(0, "self_attn.o_proj", "columns", 64, 128), 4),
    ],
    ids=str,
)
def test_a_partition_fetched_alone_has_the_right_bits(
    unit: Partition, num_pieces: int, sources: dict[str, Source], tmp_path: Path
) -> None:
    """A cut along axis 0 costs its own pieces. Columns lie in every piece of a matrix with short matrix rows, and cost all of them."""
    source = sources["mixtral fused"]

    async def work() -> None:
        async with local_swarm() as here:
            await here.start(source.served, shelf=source.shelf())
            found, report = await fetched(here, source, unit, source.cache(tmp_path))
            name = f"model.layers.0.{unit.matrix}.weight"
            matrix = source.state[name]
            assert matrix.numel() * 4 == 4 * PIECE_BYTES
            cut = matrix[unit.start : unit.stop] if unit.axis == "rows" else matrix[:, unit.start : unit.stop]
            assert equal(found, {name: cut})
            assert report.total_bytes == sum(report.from_peer.values()) == num_pieces * PIECE_BYTES

    run(work())


def test_a_liars_piece_of_an_expert_is_refused_and_comes_from_another(sources: dict[str, Source], tmp_path: Path) -> None:
    source, lied, liar = sources["mixtral fused"], asyncio.Event(), Liar()

    async def work() -> None:
        async with local_swarm() as here:
            false = await here.start(source.served, liar, shelf=source.shelf())
            cache = source.cache(tmp_path)
            options = Options(progress_timeout_s=50, stall_s=20, on_warning=lambda text: lied.set())
            parts = parts_of(Expert(0, 5), source.stored)
            fetching = asyncio.create_task(fetch_parts(parts, cache, here.pool, here.sources, options))
            await lied.wait()
            with pytest.raises(CheckpointError, match="not in the cache"):
                cache.read(parts[0])
            await here.start(source.served, shelf=source.shelf())
            report = await fetching
            found = {part.name: torch.frombuffer(bytearray(cache.read(part)), dtype=torch.float32) for part in parts}
            assert list(report.liars) == [false.record.peer] and equal(found, expected_of_expert(source, 0, 5))

    run(work())


async def with_expert(source: Source, index: int, folder: Path) -> ModelCache:
    """A cache with one expert of block 1, from a source that has everything and is gone then."""
    cache = source.cache(folder)
    async with local_swarm() as here:
        await here.start(source.served, shelf=source.shelf())
        await fetched(here, source, Expert(1, index), cache)
    return cache


def other_bytes(cache: ModelCache, parts: Sequence[TensorPart]) -> bytes:
    """Of the files with these parts: the tensor bytes of all pieces that do not cover them."""
    found = bytearray()
    for one in cache.layout.covering(parts):
        content = cache.shard(one.shard).part.read_bytes()
        for tensor in one.shard.tensors:
            entry, start = cache.manifest.entries[tensor], start_in(one.shard, tensor)
            covering = {piece for run in one.pieces.get(tensor, ()) for piece in run}
            for piece in set(range(entry.num_pieces)) - covering:
                found += content[start + piece * PIECE_BYTES :][: entry.piece_bytes(piece)]
    return bytes(found)


@pytest.mark.parametrize("form", FORMS)
def test_an_expert_is_given_on_by_a_peer_that_has_nothing_else(form: str, sources: dict[str, Source], tmp_path: Path) -> None:
    source, parts = sources[form], parts_of(Expert(1, 3), sources[form].stored)

    async def work() -> None:
        held = await with_expert(source, 3, tmp_path / "held")
        others = other_bytes(held, parts)
        assert len(others) > PIECE_BYTES and not any(others), "nothing of other experts is on its disk"
        async with local_swarm() as here:
            giver = await here.start(source.served, shelf=Shelf.of_cache(held))
            found, report = await fetched(here, source, Expert(1, 3), source.cache(tmp_path / "other"))
            assert equal(found, expected_of_expert(source, 1, 3))
            assert report.from_peer == {giver.record.peer: report.total_bytes} and not report.liars

    run(work())


def test_two_experts_come_from_two_peers_that_have_one_each(sources: dict[str, Source], tmp_path: Path) -> None:
    source = sources["mixtral fused"]

    async def work() -> None:
        parts = [part for index in (1, 6) for part in parts_of(Expert(1, index), source.stored)]
        cache = source.cache(tmp_path / "cache")
        async with local_swarm() as here:
            for index in (1, 6):
                held = await with_expert(source, index, tmp_path / f"held {index}")
                await here.start(source.served, shelf=Shelf.of_cache(held))
            report = await fetch_parts(parts, cache, here.pool, here.sources, QUICK)
            assert set(report.from_peer) == {giver.record.peer for giver in here.givers}
        for index in (1, 6):
            of_one = {part.name: cache.read(part) for part in parts_of(Expert(1, index), source.stored)}
            assert of_one == {name: value.numpy().tobytes() for name, value in expected_of_expert(source, 1, index).items()}

    run(work())


class Failing(Uploader):
    """Sets an event once it was asked for pieces and could not give them."""

    def __init__(self, has_failed: asyncio.Event) -> None:
        super().__init__()
        self._has_failed = has_failed

    async def give(self, stream: Stream, call: Call) -> None:
        try:
            await super().give(stream, call)
        except ModelNotFoundError:
            self._has_failed.set()
            raise


class Claimer(Shelf):
    """Claims to have what another shelf has."""

    of: Shelf

    def holdings(self) -> Holdings:
        return self.of.holdings()


def test_a_false_claim_to_have_pieces_costs_only_its_peer(sources: dict[str, Source], tmp_path: Path) -> None:
    source, has_failed = sources["mixtral fused"], asyncio.Event()

    async def work() -> None:
        held = Shelf.of_cache(await with_expert(source, 3, tmp_path / "held"))
        false = Claimer.of_cache(source.cache(tmp_path / "empty"))
        false.of = held
        async with local_swarm() as here:
            claimer = await here.start(source.served, Failing(has_failed), shelf=false)
            cache = source.cache(tmp_path / "cache")
            fetching = asyncio.create_task(fetched(here, source, Expert(1, 3), cache))
            await has_failed.wait()
            honest = await here.start(source.served, shelf=held)
            found, report = await fetching
            assert equal(found, expected_of_expert(source, 1, 3))
            assert list(report.from_peer) == [honest.record.peer] and claimer.uploader.sent_bytes < 4_096

    run(work())


def test_only_verified_pieces_of_an_unfinished_file_are_given(sources: dict[str, Source], tmp_path: Path) -> None:
    source, parts = sources["mixtral fused"], parts_of(Expert(1, 3), sources["mixtral fused"].stored)

    async def work() -> None:
        held = await with_expert(source, 3, tmp_path)
        shelf, full = Shelf.of_cache(held), source.shelf()
        tensor = held.layout.number(parts[0].name)
        covering = [piece for run in held.layout.covering(parts)[0].pieces[tensor] for piece in run]
        assert shelf.hashes(tensor) == full.hashes(tensor), "the list is whole, though the tensor is not"
        assert [shelf.piece(tensor, piece) for piece in covering] == [full.piece(tensor, piece) for piece in covering]
        for piece in set(range(held.manifest.entries[tensor].num_pieces)) - set(covering):
            with pytest.raises(ModelNotFoundError, match=f"piece {piece} of tensor .* is not at this peer"):
                shelf.piece(tensor, piece)
        _damage(held, parts[0], is_removed=False)
        with pytest.raises(CheckpointError, match="has changed at this peer since it was fetched"):
            shelf.piece(tensor, covering[0])
        assert shelf.piece(tensor, covering[-1]) == full.piece(tensor, covering[-1])
        _damage(held, parts[0], is_removed=True)
        with pytest.raises(ModelNotFoundError):
            shelf.piece(tensor, covering[0])

    run(work())


@pytest.mark.parametrize("form", FORMS)
def test_blocks_and_ends_are_all_tensors_each_in_one_unit(form: str, sources: dict[str, Source]) -> None:
    source = sources[form]
    names = [[part.name for part in parts_of(unit, source.stored)] for unit in (Blocks(0, 1), Blocks(1, 2), Ends())]
    assert sorted(name for of_unit in names for name in of_unit) == sorted(source.checkpoint.tensors)
    assert all(name.startswith("model.layers.1.") for name in names[1])
    assert all(part.cut is None for part in parts_of(Blocks(0, 2), source.stored))
    experts = [parts_of(Expert(0, index), source.stored) for index in range(8)]
    assert len({part for parts in experts for part in parts}) == sum(map(len, experts)), "no two experts share a part"


@pytest.mark.parametrize(
    ("unit", "kind", "why"),
    [
        (Blocks(1, 3), BadRequestError, "no block 2: blocks 0 to 1"),
        (Expert(2, 0), BadRequestError, "no block 2"),
        (Expert(0, 8), BadRequestError, "experts 0 to 7, got 8"),
        (Partition(0, "self_attn.z_proj", "rows", 0, 4), BadRequestError, "stores nothing as model.layers.0.self_attn.z_proj"),
        (Partition(0, "self_attn.q_proj", "rows", 0, 4_097), BadRequestError, r"shape \[4096, 256\]"),
        (Partition(0, "mlp.experts.down_proj", "rows", 0, 4), BadRequestError, r"shape \[8, 256, 520\]"),
        (Partition(0, "input_layernorm", "columns", 0, 4), BadRequestError, r"shape \[256\]"),
        (Ends("encoder"), ModelNotSupportedError, "encoder"),
    ],
    ids=str,
)
def test_a_unit_that_the_model_has_not_is_refused_with_what_it_has(
    unit: Unit, kind: type[Exception], why: str, sources: dict[str, Source]
) -> None:
    with pytest.raises(kind, match=why):
        parts_of(unit, sources["mixtral fused"].stored)
