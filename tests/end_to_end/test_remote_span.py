"""`model.blocks[a:b]` over real nodes equals the same layers here.

It does for all a and b, and if a node dies.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from protocols.errors import BadRequestError, NoRouteError
from protocols.ids import Span
from swarm.models.checkpoint import open_checkpoint
from swarm.models.loading import load_span
from tests.end_to_end.wire import WireSwarm
from tests.families import make_checkpoint
from tests.swarm.inference.toy import until

SPANS = [(0, 2), (2, 5), (0, 2), (2, 5)]
GREEDY: dict[str, Any] = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def swarm(path: Path) -> Iterator[WireSwarm]:
    wire = WireSwarm(path, SPANS, with_ends=True)
    yield wire
    wire.close()


def here(path: Path, start: int, stop: int, hidden: Tensor) -> Tensor:
    """The same layers on this machine, without a cache."""
    with torch.inference_mode():
        output: Tensor = load_span(open_checkpoint(path), Span(start, stop), dtype=torch.float32)(hidden)
    return output


def noise(rows: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, tokens, 64, generator=torch.Generator().manual_seed(seed))


def spans_of(session: Any) -> list[str]:
    return [str(hop.span) for hop in session.journey.route]


def assert_close(output: Tensor, expected: Tensor) -> None:
    assert output.shape == expected.shape and (output - expected).abs().max() <= 5e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["model", "thin"])
@pytest.mark.parametrize(("start", "stop", "route"), [(0, 5, 2), (0, 2, 1), (1, 4, 2), (3, 4, 1), (2, 5, 1), (1, 2, 1)])
def test_any_blocks_are_exact_with_a_session_and_without(
    swarm: WireSwarm, path: Path, kind: str, start: int, stop: int, route: int
) -> None:
    blocks, hidden = getattr(swarm, kind).blocks[start:stop], noise(2, 11)
    expected = here(path, start, stop, hidden)
    output = blocks(hidden)
    assert_close(output, expected)
    assert not output.requires_grad
    with blocks.session() as session:
        pieces = [session.step(piece) for piece in (hidden[:, :7], *hidden[:, 7:].split(1, dim=1))]
        assert session.position == 11 and len(session.journey.route) == route
    assert_close(torch.cat(pieces, 1), expected)


def test_slices_are_those_of_a_list(swarm: WireSwarm, path: Path) -> None:
    blocks = swarm.model.blocks
    assert len(blocks) == 5 and [str(one.span) for one in blocks] == ["0:1", "1:2", "2:3", "3:4", "4:5"]
    assert [str(blocks[1:][part].span) for part in (slice(1, 3), slice(-1, None), 0, -1)] == ["2:4", "4:5", "1:2", "4:5"]
    hidden = noise(1, 5)
    for one in blocks[1:4]:
        hidden = one(hidden)
    assert_close(hidden, here(path, 1, 4, noise(1, 5)))
    for wrong in (slice(3, 3), slice(4, 2), slice(0, 4, 2)):
        with pytest.raises(BadRequestError, match="in order and at least one"):
            blocks[wrong]
    with pytest.raises(IndexError):
        blocks[5]


def test_a_session_crops_and_forks(swarm: WireSwarm, path: Path) -> None:
    hidden, other = noise(1, 12), noise(1, 4, seed=2)
    with swarm.model.blocks[1:4].session() as session:
        session.step(hidden)
        session.crop(5)
        with session.fork() as twin:
            assert (session.position, twin.position) == (7, 7)
            assert_close(twin.step(other), here(path, 1, 4, torch.cat([hidden[:, :7], other], 1))[:, 7:])
            assert_close(session.step(hidden[:, 7:]), here(path, 1, 4, hidden)[:, 7:])
            assert session.journey.id != twin.journey.id
        session.step(other)  # the fork's end is not its own
        with pytest.raises(BadRequestError, match="0 to 16 tokens"):
            session.crop(17)
    with pytest.raises(BadRequestError, match="has ended"):
        session.step(other)


def test_what_cannot_be_run_is_refused_before_anything_is_sent(swarm: WireSwarm) -> None:
    blocks = swarm.model.blocks[1:3]
    session = blocks.session()
    for wrong, words in (
        ([[1.0]], "of floats, got list"),
        (torch.ones(1, 2, 64, dtype=torch.long), r"of floats, got torch\.int64"),
        (noise(1, 2)[0], r"got shape \[2, 64\]"),
        (noise(1, 2)[..., :60], r"got shape \[1, 2, 60\]"),
        (noise(1, 0), "at least 1 token"),
        (noise(1, 2) / 0, "must be finite"),
        (noise(1, 300), "limit is 256"),
    ):
        for run in (blocks, session.step):
            with pytest.raises(BadRequestError, match=words):
                run(wrong)
    assert session.journey is None
    session.step(noise(2, 2))
    with pytest.raises(BadRequestError, match="this session holds 2 sequences, but 1 came"):
        session.step(noise(1, 2))
    session.close()
    with torch.no_grad():
        blocks(noise(1, 2).requires_grad_())


def test_an_edge_of_no_node_is_no_reason_to_refuse_but_a_block_that_nobody_hosts_is(path: Path) -> None:
    wire = WireSwarm(path, [(0, 2)])
    try:
        assert_close(wire.model.blocks[1:2](noise(1, 3)), here(path, 1, 2, noise(1, 3)))
        session = wire.toys.session(blocks=Span(1, 4), route_timeout_s=0.0)
        with pytest.raises(NoRouteError, match="no live peers cover blocks 2:4"):
            wire.run(session.open())
    finally:
        wire.close()


def test_a_cache_that_is_let_go_ends_its_session_at_the_hops(swarm: WireSwarm) -> None:
    def num_sessions() -> int:
        return sum(node.host.num_sessions for node in swarm.nodes)

    gc.collect()
    swarm.run(until(lambda: num_sessions() == 0))
    for model in (swarm.model, swarm.thin):
        output = model(torch.tensor([[5, 6, 7]]))
        assert num_sessions() == 2
        del output
        gc.collect()
        swarm.run(until(lambda: num_sessions() == 0))


def test_a_copied_cache_is_a_fork_of_the_session(swarm: WireSwarm, path: Path) -> None:
    """Over the wire a fork is a session of its own: hops copy the sequences while the original stands still, and replay them after that."""
    prompt, new = (torch.randint(3, 250, (2, size), generator=torch.Generator().manual_seed(size)) for size in (20, 3))
    for model in (swarm.model, swarm.thin):
        cache = model.new_cache()
        model(prompt, past_key_values=cache)
        cache.crop(-2)
        start = prompt[:, :18]
        texts = [torch.cat([start, new.roll(shift, 1)], 1) for shift in range(3)]
        expected = [model.generate(text, **GREEDY).tolist() for text in texts]
        copies = [copy.deepcopy(cache) for _ in texts]
        before = [node.engine.forwards for node in swarm.nodes]
        model(new[:, :1], past_key_values=(copied := copy.deepcopy(cache)))
        forwards = [node.engine.forwards - count for node, count in zip(swarm.nodes, before, strict=True)]
        assert [forwards[0] + forwards[2], forwards[1] + forwards[3]] == [1, 1], "a hop that replays computes twice"
        copied.close()
        with ThreadPoolExecutor(3) as threads:
            got = list(threads.map(lambda text, own: model.generate(text, past_key_values=own, **GREEDY).tolist(), texts, copies))  # noqa: B023
        assert got == expected
        assert len({cache.journey.id, *(own.journey.id for own in copies)}) == 4
        assert model.generate(texts[0], past_key_values=cache, **GREEDY).tolist() == expected[0]


def test_hops_that_die_change_no_value(path: Path) -> None:
    """In the middle of a session over a part, and between a fork and its first step."""
    wire = WireSwarm(path, SPANS)
    try:
        hidden = noise(2, 14)
        expected = here(path, 1, 4, hidden)
        with wire.model.blocks[1:4].session() as session:
            outputs = [session.step(hidden[:, :6]), session.step(hidden[:, 6:7])]
            twin = session.fork()
            peers = {hop.peer for hop in session.journey.route}
            for index, node in enumerate(wire.nodes):
                if node.identity.peer_id in peers:
                    wire.kill(index)
            outputs += [session.step(piece) for piece in hidden[:, 7:].split(1, dim=1)]
            assert session.journey.replaced >= 1 and spans_of(session) == ["1:2", "2:4"]
            assert peers.isdisjoint(hop.peer for hop in session.journey.route)
            assert_close(torch.cat(outputs, 1), expected)
            assert_close(twin.step(hidden[:, 7:]), expected[:, 7:])
    finally:
        wire.close()
