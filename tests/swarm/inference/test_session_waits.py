"""What a session reports to its caller while it waits.

That is how far a prompt is, which blocks are missing, and that a replay runs.
"""

from __future__ import annotations

import asyncio
import time

import pytest
import torch

from protocols.errors import NoRouteError
from swarm.inference.client.session import Session, SessionConfig
from swarm.streams.links import Links
from swarm.waiting import Wait, Waits
from tests.swarm.inference.toy import ToySwarm, ask, random_tokens, reference, until

HALVES = [(0, 2), (2, 4)]


def listened(swarm: ToySwarm, route_timeout_s: float = 10.0, chunk_tokens: int = 8) -> tuple[Session, list[Wait | None]]:
    """A session, and its reports to its caller."""
    heard: list[Wait | None] = []
    config = SessionConfig(route_timeout_s=route_timeout_s, chunk_tokens=chunk_tokens)
    return Session(swarm.router, Links(swarm.pool), swarm.identity, config, Waits(heard.append)), heard


def kinds(heard: list[Wait | None]) -> list[str]:
    """Without those that follow an equal one."""
    names = [wait.kind if wait else "nothing" for wait in heard]
    return [name for index, name in enumerate(names) if not index or names[index - 1] != name]


async def test_a_long_prompt_says_how_much_of_it_the_last_hop_has_answered(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    last = await swarm.serve(2, 4)
    session, heard = listened(swarm)
    tokens = random_tokens(100)
    answer = await ask(session, (), [100], tokens, want=1)
    assert torch.allclose(answer[-1], reference(list(tokens), HALVES)[-1])
    done = [wait.done for wait in heard if wait and wait.kind == "reading"]
    assert done == [
        *range(0, 100, 8),
        100,
    ]  # one for the reply to each prefill chunk, though only the output of the last is wanted
    assert last.engine.forwards == 13
    assert heard[-1] is None
    await session.close()


async def test_a_short_step_says_only_that_nodes_are_asked_and_then_nothing(swarm: ToySwarm) -> None:
    await swarm.serve(0, 4)
    session, heard = listened(swarm)
    for token in random_tokens(3):
        await ask(session, (), [1], token[None])
    assert kinds(heard) == ["answering", "routing", "answering", *["nothing", "answering"] * 2, "nothing"]
    await session.close()


async def test_missing_blocks_are_named_with_the_patience_that_is_left_until_a_node_replays(swarm: ToySwarm) -> None:
    first, doomed = [await swarm.serve(*span) for span in HALVES]
    session, heard = listened(swarm, route_timeout_s=30.0)
    tokens = random_tokens(12)
    before = await ask(session, (), [10], tokens[:10])
    heard.clear()
    await doomed.kill()
    swarm.nodes.remove(doomed)
    asked = asyncio.create_task(ask(session, (), [2], tokens[10:]))
    await until(lambda: bool(heard) and heard[-1] is not None and heard[-1].kind == "missing")
    missing = heard[-1]
    assert missing is not None and str(missing) == "waiting for blocks 2:4, no live node hosts them"
    assert missing.route_timeout_s == 30.0 and time.monotonic() - missing.since_s < 30.0
    await swarm.serve(2, 4)
    after = await asked
    assert torch.allclose(torch.cat([before, after]), torch.stack(reference(list(tokens), HALVES)))
    assert session.replaced == 1
    assert [kind for kind in kinds(heard) if kind in ("missing", "replaying", "nothing")][-3:] == [
        "missing",
        "replaying",
        "nothing",
    ]
    assert (
        str([wait for wait in heard if wait and wait.kind == "replaying"][-1])
        == "a node was lost (blocks 2:4): replaying on another"
    )
    assert first.engine.forwards >= 2
    await session.close()


async def test_a_repair_between_steps_says_nothing_since_nobody_waits(swarm: ToySwarm) -> None:
    _first, doomed = [await swarm.serve(*span) for span in HALVES]
    session, heard = listened(swarm)
    await ask(session, (), [2], random_tokens(2))
    await swarm.serve(2, 4)
    heard.clear()
    await doomed.kill()
    await until(lambda: session.replaced == 1)
    assert heard == []
    await session.close()


async def test_when_patience_ends_the_error_names_the_missing_blocks_and_how_to_host_them(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    session, heard = listened(swarm, route_timeout_s=0.7)
    with pytest.raises(NoRouteError, match=r"blocks 2:4 of toy after 1 s.*host them: swarm node toy .*--blocks 2:4"):
        await ask(session, (), [2], random_tokens(2))
    assert "missing" in kinds(heard) and heard[-1] is None
    await session.close()
