"""Draws with penalties get few logits, and the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from swarm.inference.session import Session
from swarm.thin.generation import Limits, TokenSequence, generate
from swarm.thin.sampling import Chooser, TokenSampling
from tests.end_to_end.wire import WireSwarm

VOCAB = 8000
PROMPT = [5, 6, 7, 8, 9, 9, 9]
NEW = 40
SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.4, "repetition_penalty": 1.3},
    {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.2, "bias": ((12, 3.0),)},
    {"temperature": 0.0, "bias": ((40, 1.5),), "frequency_penalty": 2.0},
]


class AllChooser(Chooser):
    """Asks for all logits."""

    def changes(self, before: Any, num_prompt: int, vocab_size: int) -> bytes:
        return b""


def test_the_tokens_are_the_same_and_few_logits_come_back(tmp_path: Path) -> None:
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
    model.save_pretrained(tmp_path / "wide")
    swarm = WireSwarm(tmp_path / "wide", [(0, 2), (2, 4)], with_ends=True)

    async def ask(chooser: Chooser) -> tuple[list[int], float]:
        session: Session = swarm.toys.session(**swarm.sizes)
        tokens = generate(TokenSequence(session), PROMPT, chooser, Limits(max_new_tokens=NEW, vocab_size=VOCAB))
        found = [token async for token in tokens]
        timings = session.timings
        await session.close()
        return found, (timings.prompt.received_bytes + timings.later.received_bytes) / NEW

    try:
        for settings in SETTINGS:
            sampling = TokenSampling(seed=4, **settings)
            expected, num_all = swarm.run(ask(AllChooser(sampling)))
            found, num_few = swarm.run(ask(Chooser(sampling)))
            assert found == expected and len(set(found)) > 3
            assert num_all == 4 * VOCAB and num_few < num_all / 3, (num_few, num_all)
    finally:
        swarm.close()
