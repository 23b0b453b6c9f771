"""A host with embedding and head, and its next version."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from node.device.thread import Device
from node.events import Event
from node.hosting import host_maker
from node.hosting.host_maker import HostMaker
from node.serving import unit_engines
from node.serving.host import Host
from node.units.host_units import HostUnits
from protocols.errors import InternalError, ModelNotSupportedError
from protocols.ids import ModelId, PeerId, Span
from protocols.units import ENDS, Blocks, Unit
from protocols.weights_id import Weights
from swarm.inference.hop.grants import Served
from swarm.models import loading
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import EndsModel
from swarm.rpc.pool import ChannelPool
from swarm.waiting import Waits
from tests.families import make_checkpoint
from tests.swarm.inference.toy import new_identity

SPAN = Span(0, 2)
MODEL = ModelId("tiny", "a" * 64)


def version(number: int) -> Weights:
    return Weights(MODEL, number, hashlib.sha256(bytes([number])).digest() if number else b"")


class Here:
    """The parts of a presence and of a source that `HostMaker` calls."""

    weights = version(0)

    def served(self, span: Span, hidden_size: int, beside: frozenset[Unit] = frozenset()) -> Served:
        return Served(
            peer=PeerId("me"), weights=self.weights, blocks=Blocks.of(span), beside=beside, num_blocks=5, hidden_size=hidden_size,
            dtype="float32",
        )  # fmt: skip

    async def fetch(self, units: Sequence[Unit]) -> None:
        """All weights are in the local directory."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def maker(path: Path, events: list[Event]) -> HostMaker:
    here: Any = Here()
    return HostMaker(
        source=here, checkpoint=open_checkpoint(path), presence=here, device="cpu", device_thread=Device(), num_to_load=1,
        dtype="float32", ends=None, on_event=events.append, waits=Waits(),
    )  # fmt: skip


@asynccontextmanager
async def started(host: Host) -> AsyncIterator[HostUnits]:
    assert host.unit_engines is not None
    pool = ChannelPool(new_identity())
    await host.start(pool)
    try:
        yield host.unit_engines.units
    finally:
        await host.stop()
        await pool.close()


def refuse(ends: EndsModel, vocab_size: int) -> object:
    raise ModelNotSupportedError("not exact")


async def test_embedding_and_head_that_are_not_exact_leave_the_memory(
    maker: HostMaker, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[weakref.ref[Tensor]]()

    def load_ends(*args: Any, **options: Any) -> EndsModel:
        ends = loading.load_ends(*args, **options)
        loaded.extend(map(weakref.ref, ends.tensors().values()))
        return ends

    monkeypatch.setattr(host_maker, "load_ends", load_ends)
    monkeypatch.setattr(unit_engines, "choose_ends", refuse)
    host = await maker.make(SPAN)
    assert not host.served.beside and [event.kind for event in events] == ["warning", "ends"]
    assert loaded
    async with asyncio.timeout(60):
        while any(tensor() is not None for tensor in loaded):
            gc.collect()
            await asyncio.sleep(0.01)  # the thread that loaded them may hold its last result for a moment


async def test_a_version_has_embedding_and_head_if_those_are_exact_whatever_the_one_before_had(
    maker: HostMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await maker.make(SPAN)
    async with started(host) as units:
        assert host.served.beside == ENDS and units.ends is not None
        units.replace({}, version(1))
        with monkeypatch.context() as patch:
            patch.setattr(unit_engines, "choose_ends", refuse)
            without = await maker.renew(host)
        assert not without.served.beside and without.runner.ends is None
        async with started(without):
            units.replace({}, version(2))
            again = await maker.renew(without)
            async with started(again):
                assert again.served.beside == ENDS and again.runner.ends is not None
                assert units.blocks.num_readers == units.ends.num_readers == 3
    assert units.blocks.num_readers == units.ends.num_readers == 0


async def test_nothing_is_read_for_a_host_that_cannot_be_made(maker: HostMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Host:
        raise InternalError("no host")

    host = await maker.make(SPAN)
    async with started(host) as units:
        monkeypatch.setattr(host_maker, "Host", fail)
        with pytest.raises(InternalError, match="no host"):
            await maker.renew(host)
        assert units.ends is not None and units.blocks.num_readers == units.ends.num_readers == 1


async def test_units_are_read_and_restored_together(maker: HostMaker) -> None:
    host = await maker.make(SPAN)
    async with started(host) as units:
        assert host.unit_engines is not None and units.ends is not None
        name, before = next(iter(units.blocks._holding.tensors().items()))
        units.blocks.replace({name: torch.zeros_like(before)}, version(1))
        with pytest.raises(InternalError, match="embedding and head of"):
            units.read()
        assert units.blocks.num_readers == units.ends.num_readers == 1
        units.ends.replace({}, version(1))
        units.restore(host.unit_engines.readings)
        readings = units.read()
        assert readings.ends is not None and readings.weights == readings.ends.weights == version(0)
        assert readings.blocks.holding.tensors()[name] is before
        readings.close()
