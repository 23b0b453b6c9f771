"""Routes of test nodes, and the sums that one process would have."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protocols.parts_of_units import EMBED, HEAD, Part
from protocols.training import Pass
from swarm.rpc import ChannelPool
from swarm.training.chain import PassError, train
from tests.node.training.toy_run import (
    NUM_BLOCKS,
    THIRDS,
    Batch,
    TrainingNode,
)
from tests.node.training.toy_stage import Whole, whole

ALL_PARTS = {*(Part.block(number) for number in range(NUM_BLOCKS)), EMBED, HEAD}


def of_one_process(own: Batch, **options: Any) -> Whole:
    return whole(NUM_BLOCKS, own.ids, own.labels, own.positions, **options)


def expected(parts: dict[Part, list[Whole]]) -> dict[str, torch.Tensor]:
    """Sums by "unit name" of the parts that took these micro-batches."""
    sums: dict[str, torch.Tensor] = {}
    for part, wholes in parts.items():
        for each in wholes:
            for name, gradient in each.by_part[part].items():
                key = f"{part.unit} {name}"
                sums[key] = sums.get(key, torch.zeros_like(gradient)) + gradient
    return sums


def every_part(wholes: list[Whole]) -> dict[Part, list[Whole]]:
    """All parts took these."""
    return {part: wholes for part in ALL_PARTS}


def assert_sums(nodes: list[TrainingNode], parts: dict[Part, list[Whole]]) -> None:
    """Over all nodes together, bit for bit."""
    total: dict[str, torch.Tensor] = {}
    for node in nodes:
        for key, value in node.sums().items():
            total[key] = total.get(key, torch.zeros_like(value)) + value
    wanted = expected(parts)
    for key, value in total.items():
        assert torch.equal(value, wanted.get(key, torch.zeros_like(value))), key


def thirds() -> list[TrainingNode]:
    return [TrainingNode(span) for span in THIRDS]


def route_of(nodes: list[TrainingNode]) -> tuple[Any, ...]:
    return tuple(node.hop() for node in nodes)


async def failed(pool: ChannelPool, sent: Pass) -> PassError:
    with pytest.raises(PassError) as caught:
        await train(pool, sent)
    return caught.value
