"""Ollama's own client gets what `swarm generate` prints."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import ollama
import pytest

from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm
from tests.node.gateway.processes.test_errors import send
from tests.node.gateway.processes.test_openai_client import NEW, PROMPT, generated

USER = {"role": "user", "content": "hi"}
TALK = [{"role": "system", "content": "be kind"}, USER, {"role": "assistant", "content": "ho"}, USER]
LIMIT = {"num_predict": NEW}


@pytest.fixture(scope="module")
def client(swarm: GatewaySwarm) -> ollama.Client:
    return ollama.Client(host=swarm.url.removesuffix("/v1"), timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("messages", "rendered"), [([USER], "u:hi;a:"), (TALK, "s:be kind;u:hi;a:ho;u:hi;a:"), ([USER, USER], "u:hi;u:hi;a:")]
)
def test_a_chat_is_what_the_template_makes_of_it_continued(
    swarm: GatewaySwarm, client: ollama.Client, messages: list[Any], rendered: str
) -> None:
    expected = generated(swarm, prompt=rendered)
    made = client.chat("tiny", messages, options=LIMIT)
    assert (made.message.role, made.message.content, made.model) == ("assistant", expected, "tiny")
    check_costs(swarm, made, rendered)
    lines = list(client.chat("tiny", messages, options=LIMIT, stream=True))
    assert "".join(line.message.content or "" for line in lines) == expected
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    check_costs(swarm, lines[-1], rendered)


def check_costs(swarm: GatewaySwarm, made: Any, rendered: str) -> None:
    """The counts and the reason are those that OpenAI's client gets; the times are possible ones."""
    oracle = swarm.client.completions.create(model="tiny", prompt=rendered, max_tokens=NEW)
    assert (made.done, made.done_reason) == (True, oracle.choices[0].finish_reason)
    assert (made.prompt_eval_count, made.eval_count) == (len(rendered), oracle.usage.completion_tokens)
    parts = (made.load_duration, made.prompt_eval_duration, made.eval_duration)
    assert min(parts) > 0 and abs(made.total_duration - sum(parts)) <= 2 and made.total_duration < 60e9
    assert datetime.fromisoformat(made.created_at).tzinfo is not None


def test_a_prompt_goes_through_the_template_or_is_raw(swarm: GatewaySwarm, client: ollama.Client) -> None:
    for rendered, fields in (
        ("u:hi;a:", {"prompt": "hi"}),
        ("s:be kind;u:hi;a:", {"prompt": "hi", "system": "be kind"}),
        (PROMPT, {"prompt": PROMPT, "raw": True}),
    ):
        expected = generated(swarm, prompt=rendered)
        made: Any = client.generate("tiny", options=LIMIT, **fields)  # type: ignore[call-overload]
        assert made.response == expected
        check_costs(swarm, made, rendered)
        lines: list[Any] = list(client.generate("tiny", options=LIMIT, stream=True, **fields))  # type: ignore[call-overload]
        assert "".join(line.response for line in lines) == expected and lines[-1].done


DRAWS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "temperature": ({"temperature": 1.5, "seed": 3}, ("--temperature", "1.5", "--seed", "3")),
    "top-k": ({"temperature": 1.5, "top_k": 6, "seed": 5}, ("--temperature", "1.5", "--top-k", "6", "--seed", "5")),
    "top-p": ({"temperature": 1.5, "top_p": 0.7, "seed": 4}, ("--temperature", "1.5", "--top-p", "0.7", "--seed", "4")),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_those_of_the_command(swarm: GatewaySwarm, client: ollama.Client, name: str) -> None:
    options, flags = DRAWS[name]
    hints = {"num_ctx": 4096, "num_gpu": 1, "num_thread": 2, "use_mmap": True, "repeat_last_n": -1}
    made = client.generate("tiny", PROMPT, raw=True, options={**LIMIT, **options, **hints}, keep_alive="5m")
    assert made.response == generated(swarm, *flags) != generated(swarm)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"repeat_penalty": 1.7}, {"extra_body": {"repetition_penalty": 1.7}}),
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}),
        ({"min_p": 0.2, "temperature": 2.0, "seed": 1}, {"temperature": 2.0, "seed": 1, "extra_body": {"min_p": 0.2}}),
    ],
    ids=str,
)
def test_penalties_are_those_of_the_other_api(
    swarm: GatewaySwarm, client: ollama.Client, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    expected = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=40, **fields).choices[0].text
    made = client.generate("tiny", PROMPT, raw=True, options={"num_predict": 40, **options})
    assert made.response == expected != generated(swarm, new=40)


def test_a_stop_text_ends_an_answer(swarm: GatewaySwarm, client: ollama.Client) -> None:
    whole = generated(swarm, new=24)
    stop = whole[8:11]
    made = client.generate("tiny", PROMPT, raw=True, options={"num_predict": 24, "stop": ["never said", stop]})
    assert (made.response, made.done_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_of_minus_one_draws_another_answer_each_time(client: ollama.Client) -> None:
    options = {"num_predict": 30, "temperature": 2.0, "seed": -1}
    assert len({client.generate("tiny", PROMPT, raw=True, options=options).response for _ in range(3)}) == 3


def test_scores_are_those_of_the_other_api(swarm: GatewaySwarm, client: ollama.Client) -> None:
    oracle = swarm.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=NEW, logprobs=3).choices[0].logprobs
    made = client.generate("tiny", PROMPT, raw=True, options=LIMIT, logprobs=True, top_logprobs=3)
    lines = list(client.generate("tiny", PROMPT, raw=True, options=LIMIT, logprobs=True, top_logprobs=3, stream=True))
    for found in (made.logprobs, [score for line in lines for score in line.logprobs or ()]):
        assert [score.token for score in found] == oracle.tokens and len(found) == NEW
        assert [score.logprob for score in found] == pytest.approx(oracle.token_logprobs, abs=1e-4)
        assert all(len(score.top_logprobs) == 3 for score in found)


def test_models_are_listed_and_described(swarm: GatewaySwarm, client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == "tiny" and re.fullmatch("[0-9a-f]{64}", listed.digest or "")
    for name in ("tiny", "tiny:latest"):
        shown = client.show(name)
        assert shown.capabilities == ["completion", "embedding"] and shown.modelinfo is not None
        assert shown.modelinfo[f"{shown.modelinfo['general.architecture']}.context_length"] == 256
        assert shown.template and "messages" in shown.template
    assert send(swarm, "/api/version", None, "GET")[2].keys() == {"version"}


def test_a_call_without_a_prompt_opens_the_model(client: ollama.Client) -> None:
    assert client.generate("tiny:latest").done_reason == "load"
    made = client.chat("tiny", [])
    assert (made.done, made.done_reason, made.message.content) == (True, "load", "")


@pytest.mark.parametrize(
    ("path", "change", "name"),
    [
        *(("chat", change, name) for change, name in [
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"messages": [{**USER, "images": ["aGk="]}]}, "messages.0.images"),
            ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
            ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
            ({"messages": [{"role": "user", "content": "x" * 300}]}, "the prompt is too long"),
            ({"messages": None}, "messages"),
        ]),
        *(("generate", change, name) for change, name in [
            ({"suffix": "x"}, "suffix"),
            ({"template": "x"}, "template"),
            ({"context": [1]}, "context"),
            ({"images": ["aGk="]}, "images"),
            ({"raw": True, "system": "x"}, "system"),
            ({"prompt": "\ud800"}, "prompt"),
        ]),
        *((path, change, name) for path in ("chat", "generate") for change, name in [
            ({"format": "yaml"}, "format"),
            ({"format": {"type": "nonsense"}}, "Invalid type: nonsense"),
            ({"think": True}, "think"),
            ({"think": "high"}, "think"),
            ({"truncate": True}, "truncate"),
            ({"top_logprobs": 2}, "top_logprobs"),
            ({"no_such": 1}, "no_such"),
            ({"stream": "yes"}, "stream"),
            ({"options": {"mirostat": 1}}, "options.mirostat"),
            ({"options": {"repeat_last_n": 64}}, "options.repeat_last_n"),
            ({"options": {"typical_p": 0.5}}, "options.typical_p"),
            ({"options": {"num_predict": 0}}, "options.num_predict"),
            ({"options": {"temperature": -1}}, "options.temperature"),
            ({"options": {"stop": [""]}}, "options.stop"),
            ({"options": {"no_such": 1}}, "options.no_such"),
        ]),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(
    swarm: GatewaySwarm, path: str, change: dict[str, Any], name: str, is_stream: bool
) -> None:
    good = {"chat": {"messages": [USER]}, "generate": {"prompt": "hi"}}[path]
    body = {"model": "tiny", "stream": is_stream, **good, **change}
    status, _, found = send(swarm, f"/api/{path}", json.dumps(body).encode())
    assert status == 400 and list(found) == ["error"] and name in found["error"], found


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"])
def test_a_body_is_json_whatever_its_type(swarm: GatewaySwarm, kind: str) -> None:
    """So `curl -d` needs no header, as in Ollama's documents."""
    body = {"model": "tiny", "prompt": "hi", "stream": False, "options": {"num_predict": 2}}
    status, _, found = send(swarm, "/api/generate", json.dumps(body).encode(), **{"Content-Type": kind})
    assert status == 200 and found["done"]
    assert send(swarm, "/api/show", b'{"model": "tiny"}', **{"Content-Type": kind})[0] == 200


def test_errors_have_their_own_form(swarm: GatewaySwarm, client: ollama.Client) -> None:
    for ask in (
        lambda: client.chat("no-such", [USER]),
        lambda: client.show("no-such"),
        lambda: client.generate("no-such:latest"),
    ):
        with pytest.raises(ollama.ResponseError, match="this gateway serves tiny") as refused:
            ask()
        assert refused.value.status_code == 404
    assert list(send(swarm, "/api/chat", b"{")[2]) == ["error"]
    assert isinstance(send(swarm, "/api/none", b"{}")[2]["error"], str)
    assert isinstance(send(swarm, "/api/chat", b"{}", Origin="http://elsewhere.example")[2]["error"], str)
