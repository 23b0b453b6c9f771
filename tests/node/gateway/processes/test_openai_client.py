"""OpenAI's own client gets what `swarm generate` prints."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
import torch
from openai import AsyncOpenAI, NotFoundError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.node.cli.test_commands import run
from tests.node.gateway.processes.conftest import GatewaySwarm

PROMPT = "The quick brown fox"
NEW = 12


def generated(swarm: GatewaySwarm, *flags: str, new: int = NEW, prompt: str = PROMPT) -> str:
    """What `swarm generate --thin` prints."""
    asked = ("generate", "tiny", prompt, "--max-new-tokens", str(new), "--peer", swarm.peer, "--thin", *flags)
    code, said, remarks = run(*asked, "--data-dir", str(swarm.pool.folder / "generate"))
    assert code == 0, remarks
    return said.removesuffix("\n")


DRAWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "greedy": ({}, ()),
    "temperature": ({"temperature": 1.5, "seed": 3}, ("--temperature", "1.5", "--seed", "3")),
    "nucleus": ({"temperature": 1.5, "top_p": 0.7, "seed": 4}, ("--temperature", "1.5", "--top-p", "0.7", "--seed", "4")),
    "top-k": (
        {"temperature": 1.5, "seed": 5, "extra_body": {"top_k": 6}},
        ("--temperature", "1.5", "--top-k", "6", "--seed", "5"),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_completion_is_what_the_command_prints(swarm: GatewaySwarm, name: str) -> None:
    fields, flags = DRAWS[name]
    expected = generated(swarm, *flags)
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, **fields)
    assert [choice.text for choice in made.choices] == [expected]
    assert made.choices[0].finish_reason == "length" and made.usage.completion_tokens == NEW
    assert made.usage.prompt_tokens == len(PROMPT)
    chunks = list(swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"


def chat(swarm: GatewaySwarm, *messages: dict[str, str], **fields: Any) -> Any:
    return swarm.client.chat.completions.create(model="tiny", messages=list(messages), **{"max_tokens": NEW, **fields})


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([USER], "u:hi;a:"),
        ([{"role": "system", "content": "be kind"}, USER], "s:be kind;u:hi;a:"),
        ([{"role": "developer", "content": "be kind"}, USER], "s:be kind;u:hi;a:"),
        ([USER, {"role": "assistant", "content": "ho"}, USER], "u:hi;a:ho;u:hi;a:"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "u:a\nb;a:"),
    ],
)
def test_a_chat_is_what_the_template_makes_of_it_continued(swarm: GatewaySwarm, messages: list[Any], rendered: str) -> None:
    expected = generated(swarm, prompt=rendered)
    made = chat(swarm, *messages)
    assert made.object == "chat.completion" and made.choices[0].message.role == "assistant"
    assert made.choices[0].message.content == expected and made.usage.prompt_tokens == len(rendered)
    chunks = list(chat(swarm, *messages, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == made.choices[0].finish_reason
    assert not chunks[-1].choices and chunks[-1].usage == made.usage and all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].system_fingerprint == made.system_fingerprint


def test_stop_texts_end_an_answer_and_are_not_in_it(swarm: GatewaySwarm) -> None:
    whole = generated(swarm, new=24)
    stop = whole[8:11]
    expected = whole[: whole.index(stop)]
    for given in (stop, ["never said", stop]):
        made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stop=given)
        assert (made.choices[0].text, made.choices[0].finish_reason) == (expected, "stop")
        chunks = list(swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stop=given, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == expected and chunks[-1].choices[0].finish_reason == "stop"


def test_several_answers_are_seeded_one_after_the_other(swarm: GatewaySwarm) -> None:
    expected = [generated(swarm, "--temperature", "2", "--seed", str(seed)) for seed in (7, 8, 9)]
    fields: dict[str, Any] = {"temperature": 2, "seed": 7, "n": 3}
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, **fields)
    assert [choice.text for choice in made.choices] == expected and len(set(expected)) == 3
    assert made.usage.prompt_tokens == len(PROMPT) and made.usage.completion_tokens == 3 * NEW
    texts, ends = ["", "", ""], []
    for chunk in swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, stream=True, **fields):
        texts[chunk.choices[0].index] += chunk.choices[0].text
        ends += [chunk.choices[0].index] if chunk.choices[0].finish_reason else []
    assert texts == expected and sorted(ends) == [0, 1, 2]


def test_several_prompts_as_texts_or_tokens(swarm: GatewaySwarm) -> None:
    prompts = [PROMPT, "abc"]
    expected = [generated(swarm, prompt=prompt) for prompt in prompts]
    tokens = [tokenizer_of(swarm)(prompt)["input_ids"] for prompt in prompts]
    for given in (prompts, tokens):
        made = swarm.client.completions.create(model="tiny", prompt=given, max_tokens=NEW)
        assert [choice.text for choice in made.choices] == expected
    made = swarm.client.completions.create(model="tiny", prompt=tokens[1], max_tokens=NEW)
    assert made.choices[0].text == expected[1]


def tokenizer_of(swarm: GatewaySwarm) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(swarm.checkpoint)


def alone(swarm: GatewaySwarm, **settings: Any) -> tuple[torch.Tensor, Any]:
    """transformers on one machine: the new ids, and everything that `generate` returns."""
    ids = torch.tensor([tokenizer_of(swarm)(PROMPT)["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(swarm.checkpoint, dtype=torch.float32)
    more = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True, "output_logits": True, **settings}
    found = model.generate(ids, **more)
    return found.sequences[0, ids.shape[1] :], found


def test_logprobs_are_those_of_the_model(swarm: GatewaySwarm) -> None:
    new, found = alone(swarm)
    scores = torch.stack(found.logits)[:, 0].double().log_softmax(-1)
    texts = [tokenizer_of(swarm).decode([token]) for token in new]
    expected = [float(row[token]) for row, token in zip(scores, new, strict=True)]
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, logprobs=3).choices[0].logprobs
    assert made is not None and made.tokens == texts and made.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert made.text_offset[0] == 0 and len(made.top_logprobs) == NEW and len(made.text_offset) == NEW
    rendered = swarm.client.chat.completions.create(
        model="tiny",
        messages=[USER],
        max_tokens=NEW,
        logprobs=True,
        top_logprobs=2,
        temperature=1.2,
        seed=1,  # type: ignore[list-item]
    )
    content = rendered.choices[0].logprobs.content
    assert len(content) == NEW and all(
        len(one.top_logprobs) == 2 and one.logprob <= one.top_logprobs[0].logprob for one in content
    )
    chunks = chat(swarm, USER, logprobs=True, top_logprobs=2, temperature=1.2, seed=1, stream=True)
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert streamed == content


def test_a_repetition_penalty_is_transformers(swarm: GatewaySwarm) -> None:
    new, _ = alone(swarm, repetition_penalty=0.3)
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, extra_body={"repetition_penalty": 0.3})
    assert made.choices[0].text == tokenizer_of(swarm).decode(new, skip_special_tokens=True) != generated(swarm)


def test_a_bias_forbids_and_forces(swarm: GatewaySwarm) -> None:
    new, found = alone(swarm)
    forbidden = int(new[0])
    second = int(found.logits[0][0].topk(2).indices[1])
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1, logit_bias={str(forbidden): -100})
    assert made.choices[0].text == tokenizer_of(swarm).decode([second])
    made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, logit_bias={"70": 100})
    assert made.choices[0].text == tokenizer_of(swarm).decode([70]) * 3


def test_presence_and_frequency_penalties_change_what_repeats(swarm: GatewaySwarm) -> None:
    forced = {"logit_bias": {str(token): 90 for token in range(70, 90)}}

    def distinct(**fields: Any) -> int:
        made = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, logprobs=0, **forced, **fields)
        assert made.choices[0].logprobs is not None and made.choices[0].logprobs.tokens is not None
        return len({*made.choices[0].logprobs.tokens})

    assert distinct() < min(distinct(presence_penalty=2), distinct(frequency_penalty=2)) <= 20


def test_models_are_listed_by_name(swarm: GatewaySwarm) -> None:
    assert [model.id for model in swarm.client.models.list()] == ["tiny"]
    assert swarm.client.models.retrieve("tiny").owned_by == "swarm"
    with pytest.raises(NotFoundError, match="serves tiny"):
        swarm.client.models.retrieve("huge")
    with pytest.raises(NotFoundError, match="serves tiny"):
        swarm.client.completions.create(model="huge", prompt="x")


async def test_many_streams_at_once_are_each_what_they_would_be_alone(swarm: GatewaySwarm) -> None:
    prompts = [f"number {number}" for number in range(8)]
    expected = [swarm.client.completions.create(model="tiny", prompt=one, max_tokens=NEW).choices[0].text for one in prompts]

    async def ask(client: AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(model="tiny", prompt=prompt, max_tokens=NEW, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with AsyncOpenAI(base_url=swarm.url, api_key="none", max_retries=0) as client:
        assert await asyncio.gather(*(ask(client, prompt) for prompt in prompts)) == expected


def stages_of(header: str) -> dict[str, float]:
    """What `Server-Timing` says, in milliseconds."""
    return {name: float(ms) for name, ms in re.findall(r"(T\d);dur=([\d.]+)", header)}


def test_an_answer_says_how_long_each_part_took_where_it_is_asked(swarm: GatewaySwarm) -> None:
    began = time.perf_counter()
    response = swarm.client.chat.completions.with_raw_response.create(
        model="tiny", messages=[USER], max_tokens=NEW, extra_body={"timings": True}
    )
    passed_ms = (time.perf_counter() - began) * 1e3
    made, stages = response.parse(), stages_of(response.headers["server-timing"])
    (told,), num_new = made.timings, made.usage.completion_tokens
    assert list(stages) == [f"T{number}" for number in range(1, 10)] and sum(stages.values()) < passed_ms
    assert all(stages[name] > 0 for name in ("T2", "T3", "T4", "T5", "T7", "T8", "T9"))
    assert (told["index"], told["prompt"]["steps"], told["later"]["steps"]) == (0, 1, num_new - 1)
    assert [hop["peer"] for hop in told["hops"]] == [node.said["peer"] for node in swarm.nodes]
    assert [hop["steps"] for hop in told["hops"]] == [num_new, num_new]
    assert stages["T7"] == pytest.approx(sum(hop["T7"] for hop in told["hops"]), abs=0.1)


def test_a_stream_says_it_in_its_last_part_and_in_the_header_up_to_the_first_token(swarm: GatewaySwarm) -> None:
    fields = {"model": "tiny", "messages": [USER], "max_tokens": NEW, "stream": True}
    response = swarm.client.chat.completions.with_raw_response.create(**fields, n=2, extra_body={"timings": True})
    chunks, stages = list(response.parse()), stages_of(response.headers["server-timing"])
    told = chunks[-1].timings
    assert not chunks[-1].choices and [one["index"] for one in told] == [0, 1]
    assert 0 < stages["T7"] < sum(hop["T7"] for hop in told[0]["hops"])
    assert not any(hasattr(chunk, "timings") for chunk in chunks[:-1])


def test_without_being_asked_an_answer_has_the_fields_of_openais_api_only(swarm: GatewaySwarm) -> None:
    response = swarm.client.chat.completions.with_raw_response.create(model="tiny", messages=[USER], max_tokens=2)
    assert "server-timing" in response.headers and not response.parse().model_extra
