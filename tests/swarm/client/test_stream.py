"""`stream()`: the tokens of `generate`, one by one, in any loop; nothing is held while the swarm computes, and nothing after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from protocols.errors import BadRequestError, CheckpointError, NoRouteError
from swarm.client.sampling import Sampling
from swarm.client.stream import TextPieces

PROMPT = torch.randint(3, 250, (11,), generator=torch.Generator().manual_seed(2)).tolist()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: every letter beyond ASCII takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(temperature=0.8, top_k=20, top_p=0.9), dict(temperature=1.0), dict(temperature=1.5, top_p=0.5)],
    ids=["greedy", "all three", "plain", "nucleus"],
)
@pytest.mark.parametrize("family", ["llama", "bloom"])
async def test_a_stream_gives_what_generate_gives(family: str, options: dict[str, Any], pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair(family)
    seed = {"seed": 9} if options else {}
    got = [token.id async for token in ours.stream(PROMPT, max_new_tokens=20, **options, **seed)]
    torch.manual_seed(9)
    asked = {"top_k": 0, "top_p": 1.0, **options, "do_sample": True} if options else {"do_sample": False}
    expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=20, **asked)[0, 11:].tolist()
    assert got == expected
    assert len(backend.calls) == len(got) and [call.want for call in backend.calls] == [1] * len(got)
    assert backend.num_opened == backend.num_closed == 1 and backend.used_bytes == 0


async def test_the_last_token_says_why_it_is_the_last(pair: Callable[[str], Any]) -> None:
    _theirs, ours, _backend = pair("llama")
    tokens = [token async for token in ours.stream(PROMPT, max_new_tokens=5)]
    assert [token.finish for token in tokens] == [None] * 4 + ["length"]
    ends = ours.generation_config.eos_token_id
    ours.generation_config.eos_token_id = [tokens[2].id]
    try:
        assert [token.finish async for token in ours.stream(PROMPT, max_new_tokens=5)][-1] == "stop"
    finally:
        ours.generation_config.eos_token_id = ends
    at_limit = [token async for token in ours.stream((PROMPT * 30)[:254], max_new_tokens=50)]
    assert len(at_limit) == 3 and at_limit[-1].finish == "length"  # 254 + 2 are fed, the third is the last one's


async def test_many_streams_share_one_loop(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")

    async def collect(prompt: list[int]) -> list[int]:
        return [token.id async for token in ours.stream(prompt, max_new_tokens=6)]

    prompts = [PROMPT[: 3 + i] for i in range(8)]
    got = await asyncio.gather(*map(collect, prompts))
    expected = [theirs.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :].tolist() for p in prompts]
    assert got == expected and backend.num_opened == backend.num_closed == 8


async def test_leaving_a_stream_ends_its_session(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    stream = ours.stream(PROMPT)
    await anext(stream)
    assert (backend.num_opened, backend.num_closed) == (1, 0)
    await stream.aclose()
    assert backend.num_closed == 1 and backend.used_bytes == 0


async def test_cancelling_the_task_ends_its_session(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    begun = asyncio.Event()

    async def consume() -> None:
        async for _token in ours.stream(PROMPT, max_new_tokens=200):
            begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.num_opened == backend.num_closed == 1


async def test_a_failed_step_ends_the_stream_with_its_error(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    backend.fail_next = NoRouteError("nobody")
    with pytest.raises(NoRouteError):
        await anext(ours.stream(PROMPT))
    assert backend.num_opened == backend.num_closed == 1


async def test_bad_requests_open_nothing(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    for prompt, message in (([], "empty"), ([999], "out of range"), (PROMPT * 30, "too long"), ([[1], [2]], "one prompt")):
        with pytest.raises(BadRequestError, match=message):
            await anext(ours.stream(prompt))
    for options in (dict(temperature=-1), dict(top_p=0), dict(top_k=-1), dict(seed=-1)):
        with pytest.raises(BadRequestError):
            Sampling(**options)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no tokenizer"):
        await anext(ours.stream("text for a model without a tokenizer"))
    assert backend.num_opened == 0


async def test_text_comes_in_whole_letters(pair: Callable[[str], Any]) -> None:
    """Prompt and answer as text; the pieces together are what decoding at the end would give."""
    _theirs, ours, _backend = pair("llama")
    ours.__dict__["swarm_tokenizer"] = tokenizer = byte_tokenizer()
    try:
        tokens = [token async for token in ours.stream("Once", max_new_tokens=24, temperature=1.0, seed=4)]
    finally:
        del ours.__dict__["swarm_tokenizer"]
    assert "".join(token.text for token in tokens) == tokenizer.decode([token.id for token in tokens])


def test_pieces_of_text_hold_back_unfinished_letters() -> None:
    tokenizer, text = byte_tokenizer(), "naïve 🐦 murmuration"
    pieces = TextPieces(tokenizer)
    ids = tokenizer(text).input_ids
    shown = [pieces.add(token, index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(shown) == text and "" in shown and not any("�" in piece for piece in shown)
