"""`stream()` gives the tokens of `generate` one by one.

It does so in any loop. Nothing is held while the swarm computes, and nothing after.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    started = asyncio.Event()

    async def consume() -> None:
        async for _token in ours.stream(PROMPT, max_new_tokens=200):
            started.set()

    task = asyncio.create_task(consume())
    await started.wait()
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


@contextmanager
def told(*models: Any, **settings: Any) -> Iterator[None]:
    """Inside, the models' checkpoints say so."""
    kept = [model.generation_config for model in models]
    for model in models:
        model.generation_config = copy.deepcopy(model.generation_config)
        model.generation_config.update(**settings)
    try:
        yield
    finally:
        for model, before in zip(models, kept, strict=True):
            model.generation_config = before


SETTINGS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.6},
    "suppressed": {"suppress_tokens": [7, 11, 13, *range(100, 160)], "begin_suppress_tokens": [3, 4, 5]},
    "at least": {"min_new_tokens": 9},
    "no repeats": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[20], [21, 22]]},
    "forced end": {"forced_eos_token_id": 9},
    "sequence bias": {"sequence_bias": [[[30], 4.0]]},
    "min p": {"min_p": 0.05, "typical_p": 0.9},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.2, "top_k": 30, "seed": 5}], ids=["greedy", "sampled"])
async def test_a_stream_obeys_every_setting_of_the_checkpoint(
    name: str, options: dict[str, Any], pair: Callable[[str], Any]
) -> None:
    theirs, ours, _backend = pair("llama")
    with told(theirs, ours, eos_token_id=None):
        plain = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0, 11:].tolist()
    with told(theirs, ours, eos_token_id=plain[3], **SETTINGS[name]):
        got = [token async for token in ours.stream(PROMPT, max_new_tokens=12, **options)]
        torch.manual_seed(5)
        asked = {"top_k": 30, "temperature": 1.2, "top_p": 1.0, "do_sample": True} if options else {"do_sample": False}
        expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=12, **asked)[0, 11:].tolist()
    assert [token.id for token in got] == expected and (options or expected != plain)
    assert [token.finish for token in got] == [None] * (len(got) - 1) + ["stop" if expected[-1] == plain[3] else "length"]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}, {"use_cache": False},
                                      {"return_dict_in_generate": True, "output_scores": True}], ids=str)  # fmt: skip
async def test_a_checkpoint_that_asks_for_other_than_one_sequence_is_streamed_greedily(
    settings: dict[str, Any], pair: Callable[[str], Any]
) -> None:
    theirs, ours, _backend = pair("llama")
    with told(ours, **settings):
        got = [token.id async for token in ours.stream(PROMPT, max_new_tokens=8)]
    assert got == theirs.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)[0, 11:].tolist()


async def test_a_token_costs_one_forward_of_the_model(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    embedded: list[int] = []
    hook = ours.get_input_embeddings().register_forward_hook(lambda module, args, out: embedded.append(args[0].numel()))
    try:
        with told(ours, eos_token_id=None):
            tokens = [token async for token in ours.stream(PROMPT, max_new_tokens=6)]
    finally:
        hook.remove()
    assert embedded == [11, 1, 1, 1, 1, 1] and len(tokens) == len(backend.calls) == 6


async def test_a_stream_takes_what_generate_takes(pair: Callable[[str], Any]) -> None:
    """Stop strings end it with `stop`; guesses bring the same tokens in fewer steps; what is not one sequence is refused by name."""
    theirs, ours, backend = pair("llama")
    ours.__dict__["swarm_tokenizer"] = tokenizer = byte_tokenizer()
    try:
        with told(theirs, ours, eos_token_id=None):
            expected = theirs.generate(torch.tensor([PROMPT * 3]), max_new_tokens=30, do_sample=False)[0, 33:].tolist()
            guessed = [token.id async for token in ours.stream(PROMPT * 3, max_new_tokens=30, prompt_lookup_num_tokens=4)]
            num_steps = len(backend.calls)
            stop = next(text for token in expected if "�" not in (text := tokenizer.decode([token])))
            stopped = [token async for token in ours.stream(PROMPT * 3, max_new_tokens=30, stop_strings=[stop])]
    finally:
        del ours.__dict__["swarm_tokenizer"]
    assert guessed == expected and num_steps < 30
    assert [token.id for token in stopped] == expected[: len(stopped)] and len(stopped) < 30
    assert stopped[-1].finish == "stop"
    with pytest.raises(BadRequestError, match="num_beams"):
        await anext(ours.stream(PROMPT, num_beams=2))


async def test_a_reader_that_pauses_is_not_run_ahead_of(pair: Callable[[str], Any]) -> None:
    _theirs, ours, backend = pair("llama")
    with told(ours, eos_token_id=None):
        stream = ours.stream(PROMPT, max_new_tokens=50)
        for _ in range(3):
            await anext(stream)
        all_others = [token async for token in ours.stream(PROMPT, max_new_tokens=50)]  # time enough for the first one's 50, too
        assert len(all_others) == 50 and len(backend.calls) <= 50 + 3 + 1
        await stream.aclose()
    assert backend.num_closed == 2


async def test_seeded_streams_side_by_side_draw_each_their_own(pair: Callable[[str], Any]) -> None:
    _theirs, ours, _backend = pair("llama")

    async def collect(seed: int) -> list[int]:
        return [token.id async for token in ours.stream(PROMPT, max_new_tokens=10, temperature=1.0, seed=seed)]

    alone = [await collect(seed) for seed in range(4)]
    assert await asyncio.gather(*map(collect, range(4))) == alone and alone[0] != alone[1]


@pytest.mark.parametrize("assist", ["the model itself", "its first blocks"])
async def test_what_a_model_drafts_for_itself_is_not_streamed(assist: str, pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    options = {"assistant_model": ours} if assist == "the model itself" else {"assistant_early_exit": 2}
    expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)[0, 11:].tolist()
    assert [token.id async for token in ours.stream(PROMPT, max_new_tokens=12, **options)] == expected
    assert any(call.counts[0] > 1 for call in backend.calls[2:])  # guesses were checked
    sampled = [token.id async for token in ours.stream(PROMPT, max_new_tokens=6, temperature=1.0, seed=3, **options)]
    assert sampled == [token.id async for token in ours.stream(PROMPT, max_new_tokens=6, temperature=1.0, seed=3, **options)]


async def test_do_sample_draws_as_the_checkpoint_says_with_the_streams_seed(pair: Callable[[str], Any]) -> None:
    theirs, ours, _backend = pair("llama")
    with told(theirs, ours, temperature=1.4, top_k=12, do_sample=True):
        got = [token.id async for token in ours.stream(PROMPT, max_new_tokens=10, do_sample=True, seed=9)]
        torch.manual_seed(9)
        expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=10)[0, 11:].tolist()
        greedy = [token.id async for token in ours.stream(PROMPT, max_new_tokens=10)]
    assert got == expected != greedy
    assert greedy == theirs.generate(torch.tensor([PROMPT]), max_new_tokens=10, do_sample=False)[0, 11:].tolist()


async def test_padding_and_end_tokens_of_the_call_count(pair: Callable[[str], Any]) -> None:
    theirs, ours, backend = pair("llama")
    expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=5, do_sample=False)[0, 11:].tolist()
    mask = torch.tensor([[0] * 4 + [1] * 11])
    got = [
        token async for token in ours.stream([0] * 4 + PROMPT, attention_mask=mask, max_new_tokens=5, eos_token_id=expected[-1])
    ]
    assert [token.id for token in got] == expected[: len(got)] and got[-1].finish == "stop"
    assert backend.calls[0].counts == (11,)
    with pytest.raises(BadRequestError, match="takes no past_key_values"):
        await anext(ours.stream(PROMPT, past_key_values=ours.new_cache()))


@pytest.mark.parametrize("family", ["llama", "openai_gpt"])
async def test_a_step_that_does_not_come_back_keeps_nobody_from_leaving(family: str, pair: Callable[[str], Any]) -> None:
    """openai_gpt has no cache: every step is a session of its own."""
    _theirs, ours, backend = pair(family)
    backend.is_open.clear()
    backend.is_asked.clear()
    reading = asyncio.ensure_future(anext(ours.stream(PROMPT, max_new_tokens=5)))
    try:
        assert await asyncio.to_thread(backend.is_asked.wait, 60)
        reading.cancel()
        await asyncio.wait([reading], timeout=60)
        assert reading.cancelled() and backend.num_closed == backend.num_opened and backend.calls == []
    finally:
        backend.is_open.set()
