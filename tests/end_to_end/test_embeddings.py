"""Embeddings of texts are those of transformers' own model.

By a full client, a thin one, and the thin one without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from protocols.errors import BadRequestError, InternalError
from swarm.client import SwarmModelForCausalLM
from swarm.client.thin import build_thin
from swarm.models.checkpoint import open_checkpoint
from swarm.thin.embedding import embed, normalised
from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.wire import WireSwarm
from tests.families import add_byte_tokenizer

LONG = "A list is a sequence of values. " * 9
TEXTS = ["Hello", "Zürich", LONG]


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    path = make_llama(tmp_path_factory.mktemp("models") / "tiny")
    add_byte_tokenizer(path)
    made = WireSwarm(path, [(0, 2), (2, 4), (4, 6)], with_ends=True, chunk_tokens=32)
    other, made.thin = made.thin, build_thin(open_checkpoint(path), made.backend, SwarmModelForCausalLM)
    yield made
    del other  # the first to go closes their backend
    made.close()


@torch.inference_mode()
def of_one_machine(swarm: WireSwarm, rows: Sequence[Sequence[int]]) -> Tensor:
    base: Any = AutoModel.from_pretrained(swarm.path, dtype=torch.float32).eval()
    means = [base(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


@pytest.mark.parametrize("kind", ["model", "thin"])
def test_embeddings_are_those_of_one_machine(swarm: WireSwarm, kind: str) -> None:
    model = getattr(swarm, kind)
    rows = [model.tokenizer(text).input_ids for text in TEXTS]
    assert len(rows[-1]) > 2 * 128, "several prefill chunks"
    expected = of_one_machine(swarm, rows)
    for given in (TEXTS, rows):
        found = model.embed(given)
        assert (found.dtype, found.shape) == (torch.float32, (3, 64)) and torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(model.embed(TEXTS[0]), found[:1])
    assert torch.allclose(found.norm(dim=-1), torch.ones(3))
    for nothing, words in (([], "0 texts"), ([""], "0 tokens"), ([[]], "0 tokens")):
        with pytest.raises(BadRequestError, match=words):
            model.embed(nothing)


def test_a_client_without_torch_gets_the_same_and_a_death_changes_nothing(swarm: WireSwarm) -> None:
    rows = [swarm.model.tokenizer(text).input_ids for text in TEXTS]
    swarm.add(2, 4)

    async def talk() -> Any:
        found = []
        for number, row in enumerate(rows):
            session = swarm.toys.session(chunk_tokens=32, **swarm.sizes)
            if number == 2:
                await session.open(thin=True)
                doomed = next(index for index, node in enumerate(swarm.nodes) if node.identity.peer_id == session.route[1].peer)
                await swarm.nodes[doomed].kill()
            found.append(await embed(session, row))
            assert number != 2 or session.replaced == 1
            await session.close()
        with pytest.raises(BadRequestError, match="0 tokens"):
            await embed(swarm.toys.session(**swarm.sizes), [])
        return np.stack(found)

    found = swarm.run(talk())
    assert found.dtype == np.float32 and np.allclose(found, of_one_machine(swarm, rows).numpy(), atol=1e-5)


def test_what_has_no_direction_has_no_embedding() -> None:
    with pytest.raises(InternalError, match="add up to 0"):
        normalised(np.zeros(4))
