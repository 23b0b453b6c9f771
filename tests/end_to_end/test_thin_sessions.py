"""Sessions of a client without weights: token ids in, logits out.

Over real sockets, and equal to Hugging Face on one machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from protocols import compression
from protocols.defaults import REPLY_BYTES
from protocols.errors import BadRequestError, NoRouteError
from protocols.inference import WANT_ALL, Crop, Rows, StepSpec
from protocols.units import ENDS
from swarm.inference.client.session import Session
from swarm.inference.hop.compute import EndsShape
from swarm.inference.hop.process_step import _check_pooled
from swarm.inference.requests import SessionConfig, StepInput, reply_format
from tests.end_to_end.wire import WireSwarm
from tests.families import make_checkpoint
from tests.swarm.inference.toy import until

SPANS = {1: [(0, 5)], 2: [(0, 2), (2, 5)], 3: [(0, 1), (1, 4), (4, 5)]}
PROMPTS = [[5, 77, 130, 9, 41, 18, 200, 31, 90, 7, 8], [3, 4, 250]]


class Swarms:
    """Swarms of one checkpoint, made when they are asked for, and what one machine says."""

    def __init__(self, family: str, folder: Path) -> None:
        self.path = make_checkpoint(family, folder / family)
        self.theirs: Any = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        self.made: list[WireSwarm] = []

    def start(self, spans: Sequence[tuple[int, int]], **settings: Any) -> WireSwarm:
        self.made.append(WireSwarm(self.path, spans, with_ends=True, **settings))
        return self.made[-1]

    @torch.inference_mode()
    def logits(self, row: Sequence[int]) -> Tensor:
        logits: Tensor = self.theirs(torch.tensor([list(row)])).logits[0]
        return logits

    def greedy(self, row: Sequence[int], count: int) -> list[int]:
        ids = torch.tensor([list(row)])
        answer = self.theirs.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return [int(token) for token in answer[0, len(row) :]]


@pytest.fixture
def swarms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Swarms]:
    swarms = Swarms(getattr(request, "param", "llama"), tmp_path)
    yield swarms
    for swarm in swarms.made:
        swarm.close()


async def ask(session: Session, ids: Sequence[Sequence[int]], *, ops: Any = (), want: int = WANT_ALL, **form: Any) -> Tensor:
    """Logits of the new tokens of each sequence."""
    flat = torch.tensor([token for row in ids for token in row], dtype=torch.int32)
    output = await session.step(
        ops, [len(row) for row in ids], compression.pack(flat), StepSpec(kind="ids", want=want, result="logits"), **form
    )
    assert output.ids is None and output.values.dtype == "float32"
    return compression.unpack(output.values)


async def greedy(session: Session, row: Sequence[int], count: int) -> list[int]:
    """Token by token, with nothing but ids and the ids of the largest logits."""
    new, given = [], list(row)
    for _ in range(count):
        packed = compression.pack(torch.tensor(given, dtype=torch.int32))
        output = await session.step((), [len(given)], packed, StepSpec(kind="ids", want=1, result="top", top=3))
        assert output.ids is not None
        given = [int(compression.unpack(output.ids)[0, 0])]
        new += given
    return new


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
@pytest.mark.parametrize("swarms", ["llama", "gpt2", "gemma2", "opt"], indirect=True)
def test_ids_go_in_and_logits_of_every_token_come_out(swarms: Swarms, num_nodes: int) -> None:
    """Two sequences in prefill chunks, then one token each, then a beam's reordering: as the plain model on each whole sequence."""
    swarm = swarms.start(SPANS[num_nodes], chunk_tokens=4)

    async def talk() -> None:
        session = swarm.toys.session(chunk_tokens=4, **swarm.sizes)
        rows = [list(prompt) for prompt in PROMPTS]
        logits = await ask(session, rows)
        assert torch.allclose(logits, torch.cat([swarms.logits(row) for row in rows]), atol=2e-4)
        logits = await ask(session, [[11], [12]], want=1)
        rows = [[*rows[0], 11], [*rows[1], 12]]
        assert torch.allclose(logits, torch.stack([swarms.logits(row)[-1] for row in rows]), atol=2e-4)
        logits = await ask(session, [[21, 22], [23]], ops=(Rows((1, 1)), Crop(1)))
        rows = [[*rows[1][:-1], 21, 22], [*rows[1][:-1], 23]]
        expected = torch.cat([swarms.logits(rows[0])[-2:], swarms.logits(rows[1])[-1:]])
        assert torch.allclose(logits, expected, atol=2e-4)
        await session.close()

    swarm.run(talk())
    first, last = swarm.nodes[0].host, swarm.nodes[-1].host
    assert first.served.beside == last.served.beside == ENDS and (num_nodes < 3 or not swarm.nodes[1].host.served.beside)


@pytest.mark.parametrize("victim", [0, 1, 2])
@pytest.mark.parametrize("swarms", ["llama", "opt"], indirect=True)
def test_a_death_anywhere_changes_no_token(swarms: Swarms, victim: int) -> None:
    swarm = swarms.start([*SPANS[3], SPANS[3][victim]])

    async def talk() -> list[int]:
        session = swarm.toys.session(route_timeout_s=30, **swarm.sizes)
        before = await greedy(session, PROMPTS[0], 12)
        peer = session.route[victim].peer
        await next(node for node in swarm.nodes if node.identity.peer_id == peer).kill()
        after = await greedy(session, before[-1:], 12)
        assert session.replaced >= 1 and session.route[victim].peer != peer
        await session.close()
        return before + after

    assert swarm.run(talk()) == swarms.greedy(PROMPTS[0], 24)


def test_a_caller_s_embeddings_then_ids_survive_the_death_of_every_hop(swarms: Swarms) -> None:
    """The client's history has parts of two kinds then."""
    swarm = swarms.start([*SPANS[2], *SPANS[2]])
    embeds = torch.randn(9, 64, generator=torch.Generator().manual_seed(3))

    async def talk() -> Tensor:
        session = swarm.toys.session(route_timeout_s=30, chunk_tokens=4, **swarm.sizes)
        await session.step((), [9], compression.pack(embeds), StepSpec(kind="embeds", want=1, result="logits"))
        for token in range(12):  # so that the first steps leave the window
            await ask(session, [[token]], want=1)
        peers = {hop.peer for hop in session.route}
        for node in swarm.nodes:
            if node.identity.peer_id in peers:
                await node.kill()
        logits = await ask(session, [[40, 41]])
        assert peers.isdisjoint(hop.peer for hop in session.route)
        await session.close()
        return logits

    table = swarms.theirs.get_input_embeddings()
    whole = torch.cat([embeds, table(torch.tensor([*range(12), 40, 41]))])
    with torch.inference_mode():
        expected = swarms.theirs(inputs_embeds=whole[None]).logits[0, -2:]
    assert torch.allclose(swarm.run(talk()), expected, atol=2e-4)


def test_sessions_of_both_kinds_share_forwards(swarms: Swarms) -> None:
    swarm = swarms.start(SPANS[1])

    async def talk() -> list[list[int]]:
        sessions = [swarm.toys.session(**swarm.sizes) for _ in range(6)]
        answers = await asyncio.gather(*(greedy(one, [number + 3, 9], 12) for number, one in enumerate(sessions)))
        await asyncio.gather(*(one.close() for one in sessions))
        return answers

    assert swarm.run(talk()) == [swarms.greedy([number + 3, 9], 12) for number in range(6)]
    runner = swarm.nodes[0].host.runner
    assert runner.largest_batch > 1


def test_without_the_ends_a_thin_client_hears_what_is_missing(swarms: Swarms) -> None:
    swarm = WireSwarm(swarms.path, SPANS[2])
    swarms.made.append(swarm)

    async def talk() -> None:
        session = swarm.toys.session(route_timeout_s=0.5, **swarm.sizes)
        with pytest.raises(NoRouteError, match="no node hosts embedding and head of llama with block 0 and block 4"):
            await ask(session, [[1, 2]])
        await session.close()

    swarm.run(talk())


@pytest.mark.parametrize(
    ("ids", "says"),
    [([256], "token id 256 is out of range"), ([-1], "token id -1 is out of range"), ([1, 2**31 - 1], "ids 0 to 255")],
)
def test_an_id_beyond_the_vocabulary_is_refused_and_the_node_serves_on(swarms: Swarms, ids: list[int], says: str) -> None:
    swarm = swarms.start(SPANS[1])

    async def talk() -> None:
        session, good = (swarm.toys.session(**swarm.sizes) for _ in range(2))
        with pytest.raises(BadRequestError, match=says):
            await ask(session, [ids])
        assert len(await greedy(good, [1, 2], 2)) == 2
        await asyncio.gather(session.close(), good.close())

    swarm.run(talk())
    swarm.run(until(lambda: swarm.nodes[0].engine.used_bytes == 0))


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_the_largest_of_what_a_mask_allows_come_with_the_sum_over_that(swarms: Swarms, num_nodes: int) -> None:
    """Of a prompt in prefill chunks, and of two sequences."""
    swarm = swarms.start(SPANS[num_nodes], chunk_tokens=4)
    allowed = torch.rand(256, generator=torch.Generator().manual_seed(1)) < 0.3
    mask = sum(1 << token for token in range(256) if allowed[token]).to_bytes(32, "little")
    spec = StepSpec(kind="ids", want=1, result="top", top=5, mask=mask, temperature=0.7)

    async def talk() -> None:
        session = swarm.toys.session(chunk_tokens=4, **swarm.sizes)
        flat = torch.tensor([token for row in PROMPTS for token in row], dtype=torch.int32)
        output = await session.step((), [len(row) for row in PROMPTS], compression.pack(flat), spec)
        assert output.ids is not None and output.totals is not None
        for number, row in enumerate(PROMPTS):
            logits = swarms.logits(list(row))[-1].masked_fill(~allowed, -torch.inf)
            values, ids = logits.topk(5)
            assert compression.unpack(output.ids)[number].tolist() == ids.tolist()
            assert torch.allclose(compression.unpack(output.values)[number], values, atol=2e-4)
            total = compression.unpack(output.totals)[number]
            assert torch.allclose(total, (logits / 0.7).logsumexp(-1), atol=2e-4)
        with pytest.raises(BadRequestError, match="a mask of 256 tokens has 32 bytes, got 31"):
            await session.step((), [1, 1], compression.pack(flat[:2]), replace(spec, mask=mask[:-1]))
        await session.close()

    swarm.run(talk())


def test_a_step_of_guesses_is_cut_as_nodes_count_logits() -> None:
    """A node computes all logits of what is wanted, and takes no step with more than REPLY_BYTES of them."""
    config = SessionConfig(hidden_size=8, vocab_size=150_000)
    tokens = compression.pack(torch.ones(17, dtype=torch.int32))
    for spec in StepSpec(kind="ids", want=17, result="top", top=1), StepSpec(kind="ids", want=17, result="scored", top=1, own=5):
        limit = reply_format(StepInput(counts=(17,), tokens=tokens, spec=spec, positions=None), config, "float32").limit_wanted
        assert limit is not None and limit * 150_000 * 4 <= REPLY_BYTES < (limit + 1) * 150_000 * 4


@pytest.mark.parametrize("swarms", ["llama", "gpt2"], indirect=True)
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_the_sum_of_final_hidden_states_is_that_of_one_machine(swarms: Swarms, num_nodes: int) -> None:
    """Of a text in several prefill chunks, of its last tokens, and beside steps that want logits."""
    swarm = swarms.start(SPANS[num_nodes], chunk_tokens=4)
    base: Any = AutoModel.from_pretrained(swarms.path, dtype=torch.float32).eval()
    row = PROMPTS[0]
    with torch.inference_mode():
        final = base(torch.tensor([row])).last_hidden_state[0]
    ids = compression.pack(torch.tensor(row, dtype=torch.int32))
    spec = StepSpec(kind="ids", result="pooled")

    async def pooled(want: int) -> Tensor:
        session = swarm.toys.session(chunk_tokens=4, **swarm.sizes)
        output = await session.step((), [len(row)], ids, replace(spec, want=want))
        assert output.values.dtype == "float32" and output.values.shape == (3 if want == WANT_ALL else 2, 64)
        await session.close()
        return compression.unpack(output.values).sum(0)

    async def logits() -> Tensor:
        session = swarm.toys.session(chunk_tokens=4, **swarm.sizes)
        output = await session.step((), [len(row)], ids, StepSpec(kind="ids", want=1, result="logits"))
        await session.close()
        return compression.unpack(output.values)[0]

    async def talk() -> None:
        every, last, of_head = await asyncio.gather(pooled(WANT_ALL), pooled(5), logits())
        assert torch.allclose(every, final.sum(0), atol=1e-4) and torch.allclose(last, final[-5:].sum(0), atol=1e-4)
        assert torch.allclose(of_head, swarms.logits(row)[-1], atol=2e-4)

    swarm.run(talk())


@pytest.mark.parametrize("swarms", ["opt_projected"], indirect=True)
def test_a_sum_that_a_model_cannot_give_is_refused_by_the_node(swarms: Swarms) -> None:
    swarm = swarms.start(SPANS[1])

    async def talk() -> None:
        session = swarm.toys.session(**swarm.sizes)
        with pytest.raises(BadRequestError, match="there are no embeddings of texts"):
            await session.step((), [1], compression.pack(torch.ones(1, dtype=torch.int32)), StepSpec(kind="ids", result="pooled"))
        await session.close()

    swarm.run(talk())


def test_a_sum_is_of_one_sequence(swarms: Swarms) -> None:
    """The client says so, and a node that is asked by another client."""
    swarm = swarms.start(SPANS[1])
    spec = StepSpec(kind="ids", result="pooled")

    async def talk() -> None:
        session = swarm.toys.session(**swarm.sizes)
        with pytest.raises(BadRequestError, match="a sum of hidden states is of one sequence, got 2"):
            await session.step((), [1, 1], compression.pack(torch.ones(2, dtype=torch.int32)), spec)
        await session.close()
        with pytest.raises(BadRequestError, match="a sum of hidden states is of one sequence, got 2"):
            _check_pooled((1, 1), EndsShape(vocab_size=256, embed_width=64, can_pool=True))

    swarm.run(talk())


def test_more_logits_than_there_are_cannot_be_asked_for_by_either_side(swarms: Swarms) -> None:
    swarm = swarms.start(SPANS[1])

    async def talk(vocab_size: int) -> None:
        session = swarm.toys.session(hidden_size=64, vocab_size=vocab_size)
        with pytest.raises(BadRequestError, match="the 300 largest logits were asked for, this model has 256"):
            await session.step(
                (), [1], compression.pack(torch.ones(1, dtype=torch.int32)), StepSpec(kind="ids", result="top", top=300)
            )
        await session.close()

    swarm.run(talk(256))
    swarm.run(talk(400))  # a client with another config: the node refuses


@pytest.mark.parametrize("what", ["width", "NaN", "dtype"])
def test_embeddings_that_make_no_sense_are_refused(swarms: Swarms, what: str) -> None:
    swarm = swarms.start(SPANS[1])
    wrong = {"width": torch.zeros(1, 63), "NaN": torch.full((1, 64), float("nan")), "dtype": torch.zeros(1, 64).half()}[what]

    async def talk() -> None:
        session = swarm.toys.session(**swarm.sizes)
        with pytest.raises(BadRequestError, match="embeddings must be"):
            await session.step((), [1], compression.pack(wrong), StepSpec(kind="embeds", result="logits"))
        await session.close()

    swarm.run(talk())


def test_logits_of_a_long_prompt_come_in_replies_of_bounded_size(swarms: Swarms, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a vocabulary of a thousand times this one, all logits of a prompt would be gigabytes."""
    for module in ("swarm.inference.requests", "swarm.inference.hop.process_step"):
        monkeypatch.setattr(f"{module}.REPLY_BYTES", 5 * 256 * 4)
    swarm = swarms.start(SPANS[2])

    async def talk() -> None:
        session = swarm.toys.session(**swarm.sizes)
        rows = [list(range(3, 40)), list(range(50, 61))]
        assert torch.allclose(await ask(session, rows), torch.cat([swarms.logits(row) for row in rows]), atol=2e-4)
        assert session._legs.retained.next_step > 37 // 5
        await session.close()

    swarm.run(talk())
    assert REPLY_BYTES >= 8 * 4 * 256_000  # eight sequences of the largest vocabularies still share a step
