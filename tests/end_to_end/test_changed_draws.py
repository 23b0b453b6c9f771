"""Draws with penalties, and scores, get few logits, and the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import transformers

from swarm.inference.client.session import Session
from swarm.thin.generation import Constraint, Limits, TokenSequence, generate
from swarm.thin.sampling import Chooser, TokenSampling
from swarm.thin.scoring import Scored, ScoringChooser
from tests.end_to_end.wire import WireSwarm

VOCAB = 8000
PROMPT = [5, 6, 7, 8, 9, 9, 9]
NEW = 40
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.4, "repetition_penalty": 1.3},
    {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.2, "bias": ((12, 3.0),)},
    {"temperature": 0.0, "bias": ((40, 1.5),), "frequency_penalty": 2.0},
    {"temperature": 2.5, "top_k": 300, "top_p": 0.95},
    {"temperature": 0.4, "suppressed": (5, 6)},
]
SCORED: list[dict[str, Any]] = [
    *SETTINGS[:4], {"temperature": 0.4}, {"temperature": 0.0, "repetition_penalty": 1.2}, {"temperature": 0.9, "top_k": 40},
]  # fmt: skip


class All(Chooser):
    """Asks for all logits."""

    def changes(self, before: Any, num_prompt: int, vocab_size: int) -> bytes:
        return b""

    def asks(self, before: Any, num_prompt: int = 0, is_changed: bool = False) -> int:
        return 0


class AllScoring(All, ScoringChooser):
    """The same, with scores."""


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    path = tmp_path_factory.mktemp("models") / "wide"
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
    )
    transformers.set_seed(3)
    model = transformers.LlamaForCausalLM(config)
    model.lm_head.weight.data.normal_(std=1.0)
    model.save_pretrained(path)
    made = WireSwarm(path, [(0, 2), (2, 4)], with_ends=True)
    yield made
    made.close()


async def ask(
    swarm: WireSwarm, chooser: Chooser, constraint: Constraint | None = None
) -> tuple[list[int], float, list[Scored | None]]:
    """The tokens, the bytes that came for each, and the scores."""
    session: Session = swarm.toys.session(chunk_tokens=4, **swarm.sizes)
    limits = Limits(max_new_tokens=NEW, vocab_size=VOCAB)
    found, scores = list[int](), list[Scored | None]()
    async for token in generate(TokenSequence(session), PROMPT, chooser, limits, None, constraint):
        found.append(token)
        scores.append(chooser.last if isinstance(chooser, ScoringChooser) else None)
    timings = session.timings
    await session.close()
    return found, (timings.prompt.received_bytes + timings.later.received_bytes) / NEW, scores


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_tokens_are_the_same_and_few_logits_come_back(swarm: WireSwarm, settings: dict[str, Any]) -> None:
    sampling = TokenSampling(seed=4, **settings)
    expected, num_all, _ = swarm.run(ask(swarm, All(sampling)))
    found, num_few, _ = swarm.run(ask(swarm, Chooser(sampling)))
    print(settings, num_few)
    assert found == expected and len(set(found)) > 3
    assert num_all == 4 * VOCAB and num_few < num_all / 3, (num_few, num_all)


class Odd:
    """Only odd tokens may come."""

    async def mask(self) -> bytes:
        return b"\xaa" * (VOCAB // 8)

    def accept(self, token: int) -> None:
        assert token % 2


@pytest.mark.parametrize("settings", SCORED, ids=str)
@pytest.mark.parametrize("constraint", [None, Odd()], ids=["", "masked"])
def test_scores_are_the_same_and_few_logits_come_back(swarm: WireSwarm, settings: dict[str, Any], constraint: Odd | None) -> None:
    sampling = TokenSampling(seed=4, **settings)
    expected, num_all, theirs = swarm.run(ask(swarm, AllScoring(sampling, 5, constraint is not None), constraint))
    found, num_few, scores = swarm.run(ask(swarm, ScoringChooser(sampling, 5, constraint is not None), constraint))
    print(settings, num_few)
    assert found == expected and len(set(found)) > 3
    assert num_all == 4 * VOCAB and num_few < num_all / 2, (num_few, num_all)
    for one, other in zip(scores, theirs, strict=True):
        assert one is not None and other is not None and (one.token, [token for token, _ in one.top]) == (
            other.token, [token for token, _ in other.top]
        )  # fmt: skip
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
