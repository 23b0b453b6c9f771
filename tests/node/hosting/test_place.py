"""The memory that one model of a node may take.

Which models are refused beside others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node import hardware
from node.config import NodeConfig
from node.device.memory import Memory
from node.device.thread import Device
from node.hosting.host_maker import HostMaker
from node.hosting.place import Place, Shared
from node.placement.announcing import Announcement
from node.serving.host import Host
from protocols.errors import ConfigError
from protocols.ids import Span
from protocols.units import Blocks, Ends, Unit
from swarm.models.checkpoint import open_checkpoint
from swarm.placement.choose import Capacity
from swarm.waiting import Waits
from tests.families import make_checkpoint
from tests.swarm.inference.toy import Records, new_identity


class Planned(Exception):
    """Raised before anything is loaded."""


class PlannedPlace(Place):
    """Raises `Planned` as soon as it knows the memory that it may take."""

    async def _choose_span(self, capacity: Capacity, maker: HostMaker) -> Host:
        raise Planned(capacity.free_bytes, maker.room_bytes())


class EmptyDirectory:
    """A directory without peers."""

    async def snapshot(self, model_name: str) -> Records:
        return Records(())


def shared(config: NodeConfig, memory: Memory | None = None) -> Shared:
    """What a node's models share, without a network."""
    peer: Any = SimpleNamespace(
        peer_id=new_identity().peer_id, directory=EmptyDirectory(), pool=SimpleNamespace(is_connected=None), ping=None,
        certificate=b"", addresses=(), multiaddrs=(),
    )  # fmt: skip
    nothing: Any = SimpleNamespace(add=lambda shelf: None)
    return Shared(
        peer=peer, dispatcher=nothing, uploader=nothing, announcement=Announcement(config, peer), device="cpu",
        device_thread=Device(memory), on_event=lambda event: None, on_fetch=lambda progress: None, waits=Waits(),
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return NodeConfig(model=str(make_checkpoint("llama", tmp_path / "tiny")), dtype="float32", data_dir=tmp_path / "data")


@pytest.mark.parametrize(
    ("num_to_load", "promised_bytes", "planned_bytes", "room_bytes"),
    [(3, 0, 300, 300), (2, 0, 450, 450), (1, 0, 900, 900), (1, 400, 500, 900), (2, 400, 250, 450), (1, 1_000, 0, 900)],
)
async def test_a_model_plans_with_its_part_and_without_what_others_were_promised(
    num_to_load: int,
    promised_bytes: int,
    planned_bytes: int,
    room_bytes: int,
    config: NodeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the weights of the second model could take the memory for sessions of the first."""
    monkeypatch.setattr(hardware, "room_bytes", lambda device: 900)
    place = PlannedPlace(config, shared(config, Memory(limit_bytes=promised_bytes)), num_to_load)
    with pytest.raises(Planned) as planned:
        await place.take()
    assert planned.value.args == (planned_bytes, room_bytes)


async def test_one_model_under_two_names_is_refused_before_it_is_loaded_again(config: NodeConfig) -> None:
    """Calls name a model and its blocks: two hosts of one model would be one, and the first would get no session."""
    both = shared(config)
    with pytest.raises(Planned):
        await PlannedPlace(config, both, 2).take()
    again = NodeConfig(model=f"{config.model}/../tiny", dtype="float32", data_dir=config.data_dir)
    with pytest.raises(ConfigError, match=r"this node serves tiny@[0-9a-f]{12} already: name each model once"):
        await PlannedPlace(again, both, 1).take()


class Wanted:
    """A source that stops at what it is asked for."""

    async def fetch(self, asked: Sequence[Unit]) -> None:
        raise Planned(*asked)


@pytest.mark.parametrize(("promised_bytes", "beside"), [(0, [Ends()]), (900_000_000, [])])
async def test_embedding_and_head_are_hosted_only_in_memory_that_is_not_promised(
    promised_bytes: int, beside: list[Unit], config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "room_bytes", lambda device: 900_000_000)
    unused: Any = None
    source: Any = Wanted()
    maker = HostMaker(
        source=source, checkpoint=open_checkpoint(config.model), presence=unused, device="cpu", device_thread=unused,
        num_to_load=1, promised_bytes=promised_bytes, dtype="float32", ends=None, on_event=unused, waits=Waits(),
    )  # fmt: skip
    with pytest.raises(Planned) as wanted:
        await maker.make(Span(0, 1))
    assert wanted.value.args == (Blocks(0, 1), *beside)
