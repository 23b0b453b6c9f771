"""Sessions over some of the model's blocks.

A hop may run a part of what its node hosts, and dies and is bounded like any other.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from node.serving import part_engines
from protocols import compression
from protocols.errors import BadRequestError, NoRouteError
from protocols.ids import Span
from protocols.inference import Crop, Expect, HopLost, Repeat, StepSpec
from protocols.units import Blocks
from swarm.inference.client.session import Session
from tests.swarm.inference.probe import Probe, grant_of, hop_of, step_of
from tests.swarm.inference.toy import ToyNode, ToySwarm, ask, random_tokens, reference, until


def part_session(swarm: ToySwarm, start: int, stop: int, **more: float) -> Session:
    return swarm.session(blocks=Span(start, stop), **more)


def spans(session: Session) -> list[tuple[int, int]]:
    return [(hop.span.start, hop.span.stop) for hop in session.route]


def used_bytes(node: ToyNode) -> int:
    return node.host.runner.engines.used_bytes


def expected(tokens: Tensor, *route: tuple[int, int]) -> Tensor:
    return torch.stack(reference(list(tokens), route))


async def test_blocks_that_cross_the_edges_of_what_nodes_host_run_as_parts(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    await swarm.serve(2, 4)
    tokens, session = random_tokens(20), part_session(swarm, 1, 3, chunk_tokens=4)
    assert torch.allclose(await ask(session, (), [20], tokens), expected(tokens, (1, 2), (2, 3)))
    assert spans(session) == [(1, 2), (2, 3)]
    rows = [torch.cat([tokens[:-2], more[None]]) for more in random_tokens(2)]
    answer = await ask(session, (Repeat(2), Crop(2)), [1, 1], torch.stack([row[-1] for row in rows]))
    assert torch.allclose(answer, torch.stack([expected(row, (1, 2), (2, 3))[-1] for row in rows]))
    await session.close()
    await until(lambda: not any(used_bytes(node) for node in swarm.nodes))


async def test_hosts_that_overlap_cover_blocks_together(swarm: ToySwarm) -> None:
    await swarm.serve(0, 3)
    await swarm.serve(2, 4)
    tokens, session = random_tokens(5), part_session(swarm, 1, 4)
    assert torch.allclose(await ask(session, (), [5], tokens), expected(tokens, *spans(session)))
    assert spans(session) in ([(1, 3), (3, 4)], [(1, 2), (2, 4)])
    await session.close()


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_part_that_dies_is_replaced_and_changes_no_token(swarm: ToySwarm, victim: int) -> None:
    hosted = [(0, 2), (2, 4)]
    nodes = [await swarm.serve(*span) for span in hosted]
    tokens, session = random_tokens(30), part_session(swarm, 1, 3)
    before = [await ask(session, (), [1], token[None]) for token in tokens[:15]]
    await swarm.serve(*hosted[victim])
    await nodes[victim].kill()
    after = [await ask(session, (), [1], token[None]) for token in tokens[15:]]
    assert torch.allclose(torch.cat([*before, *after]), expected(tokens, (1, 2), (2, 3)))
    assert session.replaced >= 1 and nodes[victim].identity.peer_id not in {hop.peer for hop in session.route}
    assert nodes[1 - victim].identity.peer_id in {
        hop.peer for hop in session.route
    }  # the hop that held its sequences is not replayed
    await session.close()


async def test_a_whole_session_and_parts_run_beside_each_other(swarm: ToySwarm) -> None:
    node = await swarm.serve(0, 4)
    routes = [(0, 4), (1, 3), (1, 3), (3, 4)]
    sessions = [swarm.session(), *(part_session(swarm, *route) for route in routes[1:])]
    tokens = [random_tokens(9) for _ in routes]
    made: list[list[Tensor]] = [[] for _ in routes]
    for at in range(9):
        for session, own, outputs in zip(sessions, tokens, made, strict=True):
            outputs.append(await ask(session, (), [1], own[at : at + 1]))
    for route, own, outputs in zip(routes, tokens, made, strict=True):
        assert torch.allclose(torch.cat(outputs), expected(own, route))
    assert used_bytes(node) == 4 * 9
    for session in sessions:
        await session.close()
    await until(lambda: used_bytes(node) == 0)


async def test_parts_share_the_memory_of_their_node(swarm: ToySwarm) -> None:
    await swarm.serve(0, 4, limit_tokens=100)
    whole, part, more = swarm.session(), part_session(swarm, 0, 2), part_session(swarm, 2, 4, route_timeout_s=1.0)
    await ask(whole, (), [40], random_tokens(40))
    await ask(part, (), [40], random_tokens(40))
    with pytest.raises(NoRouteError, match=r"no memory"):
        await ask(more, (), [40], random_tokens(40))
    await ask(whole, (), [15], random_tokens(15))
    for session in (whole, part, more):
        await session.close()


async def test_parts_that_nobody_uses_make_room_and_others_are_refused(swarm: ToySwarm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_engines, "MAX_PARTS", 2)
    node = await swarm.serve(0, 4)
    tokens = random_tokens(3)
    first, second = part_session(swarm, 0, 1), part_session(swarm, 1, 2)
    for session in (first, second):
        await ask(session, (), [3], tokens)
    third = part_session(swarm, 2, 3, route_timeout_s=1.0)
    with pytest.raises(NoRouteError, match="runs 2 other parts"):
        await ask(third, (), [3], tokens)
    swarm.router.experience.blame.forgive(node.identity.peer_id, 0.0)
    await third.close()
    await first.close()
    await until(lambda: len(node.host.hops) == 1)
    fourth = part_session(swarm, 2, 3)
    assert torch.allclose(await ask(fourth, (), [3], tokens), expected(tokens, (2, 3)))
    for session in (second, fourth):
        await session.close()


async def test_blocks_that_nobody_hosts_are_named(swarm: ToySwarm) -> None:
    await swarm.serve(0, 2)
    with pytest.raises(NoRouteError, match="blocks 2:3"):
        await ask(part_session(swarm, 1, 3, route_timeout_s=0.0), (), [1], random_tokens(1))


async def test_token_ids_and_logits_are_refused_where_the_route_is_a_part(swarm: ToySwarm) -> None:
    """By the client before anything is sent, and by the node whatever the client says."""
    await swarm.serve(0, 4)
    session = part_session(swarm, 0, 3, hidden_size=4, vocab_size=9)
    ids = compression.pack(torch.zeros(2, dtype=torch.int32))
    with pytest.raises(BadRequestError, match="a session over blocks 0:3 takes hidden states"):
        await session.step((), [2], ids, StepSpec(kind="ids", result="logits"))
    await session.close()
    for span, kind, result in ((Span(1, 4), "ids", "logits"), (Span(0, 3), "hidden", "logits")):
        probe = Probe()
        node = swarm.nodes[0]
        line = await probe.open(node, grant_of(probe.identity, [replace(hop_of(node), unit=Blocks.of(span))]))
        assert isinstance(await line.hear(), Expect)
        payload = ids if kind == "ids" else compression.pack(random_tokens(2))
        await line.say(replace(step_of(0, random_tokens(2)), payload=payload, spec=StepSpec(kind=kind, result=result)))
        lost = await line.hear()
        assert isinstance(lost, HopLost) and "part of the model" in lost.message
        await probe.close()
