"""Histories that a hop takes, and those that it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from protocols import compression
from protocols.inference import Expect, HopLost
from tests.swarm.inference.lines import SESSION, WHOLE, history_of, opened, reply_of
from tests.swarm.inference.probe import Probe, nonsense, step_of
from tests.swarm.inference.toy import ToyNode, random_tokens, reference


async def test_a_history_brings_a_hop_to_its_base(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    tokens = random_tokens(4)
    first, second = (
        replace(history_of(9, part, 2, [2]), payload=compression.pack(tokens[2 * part : 2 * part + 2])) for part in (0, 1)
    )
    await line.say(first, second, step_of(9, last := random_tokens(1)))
    reply = await reply_of(replies)
    assert reply.step == 9
    assert torch.allclose(compression.unpack(reply.payload), reference([*tokens, *last], WHOLE)[-1])


@pytest.mark.parametrize(
    "parts",
    [
        [(9, 1, 2, [2])],
        [(9, 0, 3, [2]), (9, 2, 3, [2])],
        [(9, 0, 2, [2]), (8, 1, 2, [2])],
        [(9, 0, 2, [2]), (9, 1, 3, [2])],
        [(9, 0, 2, [2]), (9, 1, 2, [1, 1])],
    ],
    ids=["no first part", "a part is missing", "another base", "another number of parts", "other sequences"],
)
async def test_parts_of_a_history_that_disagree_are_not_used(
    client: Probe, node: ToyNode, parts: list[tuple[int, int, int, list[int]]]
) -> None:
    line, replies = await opened(client, node)
    await line.say(step_of(0))  # so that it waits for nothing
    await reply_of(replies)
    await line.say(*(history_of(*part) for part in parts), step_of(9))
    assert await line.hear() == Expect(session=SESSION, epoch=0, step=0)
    await line.say(step_of(0, tokens := random_tokens(1)))
    assert torch.allclose(compression.unpack((await reply_of(replies)).payload), reference(list(tokens), WHOLE)[0])
    assert node.engine.used_bytes == 1


async def test_a_broken_off_history_is_void_when_steps_begin_anew(client: Probe, node: ToyNode) -> None:
    line, replies = await opened(client, node)
    await line.say(history_of(9, 0, 2, [5]), step_of(0, tokens := random_tokens(1)))
    assert torch.allclose(compression.unpack((await reply_of(replies)).payload), reference(list(tokens), WHOLE)[0])
    assert node.engine.used_bytes == 1


@pytest.mark.parametrize("kind", nonsense())
async def test_a_history_of_nonsense_is_refused(client: Probe, node: ToyNode, kind: str) -> None:
    line, _ = await opened(client, node)
    values = nonsense()[kind]
    await line.say(replace(history_of(9, 0, 1, [1]), payload=compression.pack(values)))
    lost = await line.hear()
    assert isinstance(lost, HopLost) and lost.code == "bad_request"
    assert node.engine.used_bytes == 0
