"""Thin client, full client and transformers give equal tokens.

In every mode of `generate`, over real nodes that host embedding and head, deaths included.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.inference.client.session import Session, SessionConfig
from swarm.streams.links import Links
from swarm.thin.generation import Limits, TokenSequence, generate
from swarm.thin.sampling import Chooser, TokenSampling
from tests.end_to_end.test_families import _KillAfter
from tests.end_to_end.wire import WireSwarm
from tests.families import make_checkpoint
from tests.swarm.client.test_generate import GREEDY, LEFT, MODES, NEW, PADDED, PROMPT, REPETITIVE, SAMPLED, SEED, Collected

FAMILIES = ["llama", "gpt2", "gemma2", "bloom", "mixtral", "qwen2"]
SPANS = [(0, 2), (2, 5)]
FEW = 10
"""Tokens that a mode answers: enough for beams to change places, and half the time of NEW, for 6 families x 14 modes."""
Trio = tuple[Any, WireSwarm]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Trio]]:
    """(transformers' model, a swarm with `model` and `thin`)."""
    swarms: list[WireSwarm] = []

    @cache
    def load(family: str) -> Trio:
        path = make_checkpoint(family, tmp_path_factory.mktemp(family))
        swarms.append(WireSwarm(path, SPANS, chunk_tokens=8, with_ends=True))
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), swarms[-1]

    yield load
    for swarm in swarms:
        swarm.close()


def answers(models: list[Any], *args: Any, **kwargs: Any) -> list[list[list[int]]]:
    """The same call at each model, after the same seed."""
    found = []
    for model in models:
        torch.manual_seed(SEED)
        found.append(model.generate(*args, **kwargs).tolist())
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_mode_equals_the_full_client_and_transformers(family: str, mode: str, trio: Callable[[str], Trio]) -> None:
    theirs, swarm = trio(family)
    prompt, options, _ = MODES[mode]
    if not options.get("use_cache", True):
        options = options | {"max_new_tokens": 5}  # a session for every token
    elif options.get("eos_token_id") is None:  # if sequences end early, all of NEW is needed
        options = options | {"max_new_tokens": FEW}
    expected, full, thin = answers([theirs, swarm.model, swarm.thin], prompt, **options)
    assert thin == expected == full
    assert not list(swarm.thin.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_speculation_streams_and_scores(family: str, trio: Callable[[str], Trio]) -> None:
    theirs, swarm = trio(family)
    models = [theirs, swarm.model, swarm.thin]
    expected, full, thin = answers(models, REPETITIVE, **GREEDY, prompt_lookup_num_tokens=4)
    assert thin == expected == full
    for options in (GREEDY, SAMPLED):
        expected, full, thin = answers(models, PROMPT, **options, assistant_model=theirs)
        assert thin == expected == full
    streamer = Collected()
    got = swarm.thin.generate(
        PROMPT, **GREEDY, streamer=streamer, return_dict_in_generate=True, output_scores=True, output_logits=True
    )
    assert streamer.tokens == got.sequences[0].tolist() and streamer.has_ended
    ours = theirs.generate(PROMPT, **GREEDY, return_dict_in_generate=True, output_scores=True, output_logits=True)
    torch.testing.assert_close(torch.stack(got.scores), torch.stack(ours.scores), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(ours.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
def test_embeddings_of_the_callers_own(family: str, trio: Callable[[str], Trio]) -> None:
    theirs, swarm = trio(family)
    embeds = theirs.get_input_embeddings()(PADDED).detach()
    expected, full, thin = answers([theirs, swarm.model, swarm.thin], inputs_embeds=embeds, attention_mask=LEFT, **GREEDY)
    assert thin == expected == full


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("doomed", ["first hop", "last hop"])
def test_a_death_under_beams_of_a_thin_client_changes_nothing(family: str, doomed: str, tmp_path: Path) -> None:
    """The first hop's replacement embeds the history anew; the last one's goes on with the head."""
    path = make_checkpoint(family, tmp_path / family)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    swarm = WireSwarm(path, [*SPANS, (0, 2), (2, 5)], with_ends=True)
    ids, mask = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(3)), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    settings: dict[str, Any] = {"attention_mask": mask, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    settings |= {"max_new_tokens": 20, "min_new_tokens": 20}
    killer = _KillAfter(7, swarm, (0, 2) if doomed == "first hop" else (1, 3))
    try:
        ours = swarm.thin.generate(ids, **settings, stopping_criteria=[killer])
        assert ours.tolist() == theirs.generate(ids, **settings).tolist()
        assert killer.has_killed
    finally:
        swarm.close()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "qwen2"])
@pytest.mark.parametrize(
    ("sampling", "theirs_too"),
    [
        (TokenSampling(), {}),
        (TokenSampling(repetition_penalty=1.3), {"repetition_penalty": 1.3}),
    ],
    ids=["greedy", "penalty"],
)
def test_the_torch_free_client_says_what_transformers_says(
    family: str, sampling: TokenSampling, theirs_too: dict[str, Any], trio: Callable[[str], Trio]
) -> None:
    """With guesses and without: prompt in prefill chunks, one sequence, the largest logit or all of them."""
    theirs, swarm = trio(family)
    expected = theirs.generate(REPETITIVE, **GREEDY, **theirs_too)[0, REPETITIVE.shape[1] :].tolist()
    prompt = REPETITIVE[0].tolist()

    def lookup(said: Any) -> list[int]:
        text = list(said)
        at = next((at for at in range(len(text) - 3, -1, -1) if text[at : at + 2] == text[-2:]), None)
        return [] if at is None else text[at + 2 : at + 5]

    async def answer(propose: Any) -> list[int]:
        config = SessionConfig(hidden_size=1, vocab_size=256, chunk_tokens=8)
        session = Session(swarm.toys.router, Links(swarm.toys.pool), swarm.toys.identity, config)
        try:
            stream: AsyncIterator[int] = generate(
                TokenSequence(session), prompt, Chooser(sampling), Limits(max_new_tokens=NEW), propose
            )
            return [token async for token in stream]
        finally:
            await session.close()

    async def both() -> list[list[int]]:
        return list(await asyncio.gather(answer(None), answer(lookup)))

    assert swarm.run(both()) == [expected, expected]
