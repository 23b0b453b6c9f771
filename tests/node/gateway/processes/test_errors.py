"""What cannot be answered is refused by name, in OpenAI's form."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.node.cli.test_commands import eventually
from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 3}


def send(
    swarm: GatewaySwarm, path: str, body: bytes | None, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], Any]:
    """(status, headers, JSON) as `curl` would get them."""
    connection = http.client.HTTPConnection(urlsplit(swarm.url).netloc, timeout=LIMIT_S)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    found = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, json.loads(found)


def refusal(swarm: GatewaySwarm, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """The error of a request; its form is always the same."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, _, found = send(swarm, path, data)
    assert got == status, found
    assert list(found) == ["error"] and list(found["error"]) == ["message", "type", "param", "code"]
    error: dict[str, Any] = found["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("response_format", {"type": "structural_tag"}),
        ("reasoning_effort", "high"),
        ("thinking_token_budget", 100),
        ("modalities", ["audio"]),
        ("audio", {"voice": "x"}),
        ("store", True),
        ("service_tier", "flex"),
        ("verbosity", "low"),
        ("web_search_options", {}),
        ("typical_p", 0.5),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_field_that_is_not_supported_is_refused_by_its_name(
    swarm: GatewaySwarm, field: str, value: Any, is_stream: bool
) -> None:
    error = refusal(swarm, "/v1/chat/completions", {**CHAT, field: value, "stream": is_stream})
    assert error["param"].split(".")[0] == field and field in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "x"), ("best_of", 3), ("messages", [])])
def test_so_it_is_for_texts(swarm: GatewaySwarm, field: str, value: Any) -> None:
    assert refusal(swarm, "/v1/completions", {**TEXT, field: value})["param"] == field


def test_what_changes_nothing_is_taken(swarm: GatewaySwarm) -> None:
    neutral = {"tools": None, "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "user": "anna",
               "service_tier": "auto", "modalities": ["text"], "parallel_tool_calls": True, "logit_bias": {}, "stop": []}  # fmt: skip
    answer = {"role": "assistant", "content": "ho", "refusal": None, "annotations": [], "tool_calls": None, "audio": None}
    body = {**CHAT, **neutral, "messages": [*CHAT["messages"], answer, *CHAT["messages"]]}
    status, headers, found = send(swarm, "/v1/chat/completions", json.dumps(body).encode())
    assert status == 200 and headers["x-request-id"] == found["id"]
    neutral = {"echo": False, "best_of": 1, "suffix": None, "logprobs": None, "n": None, "temperature": None}
    assert send(swarm, "/v1/completions", json.dumps(TEXT | neutral).encode())[0] == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"256": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 201]}, "stop.0"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 4}, "max_completion_tokens"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "name": "b" * 201}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.type",
        ),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        ({"max_tokens": 300}, "messages"),
    ],
)
def test_a_value_out_of_its_range_is_named(swarm: GatewaySwarm, change: dict[str, Any], param: str) -> None:
    error = refusal(swarm, "/v1/chat/completions", CHAT | change)
    assert error["param"] == param, error
    assert error["param"].partition(".")[0] in error["message"] or error["code"] == "context_length_exceeded"


NO_PROMPTS: list[Any] = [
    *([], [[]], "", "\ud800", ["\udfff"], ["a"] * 17, {"a": 1}, None),
    *([3, 256], [3, -1], [2**40], [["a"]], [1, "a"]),
]


@pytest.mark.parametrize("prompt", NO_PROMPTS, ids=ascii)
def test_a_prompt_that_is_none_is_named(swarm: GatewaySwarm, prompt: Any) -> None:
    assert (refusal(swarm, "/v1/completions", TEXT | {"prompt": prompt})["param"] or "").partition(".")[0] == "prompt"


def test_too_long_a_conversation_has_its_own_code(swarm: GatewaySwarm) -> None:
    body = CHAT | {"messages": [{"role": "user", "content": "x" * 300}]}
    error = refusal(swarm, "/v1/chat/completions", body)
    assert error["code"] == "context_length_exceeded" and "limit is 256" in error["message"]


def test_a_template_that_refuses_is_quoted(swarm: GatewaySwarm) -> None:
    body = CHAT | {"messages": [{"role": "system", "content": "no"}, *CHAT["messages"]]}
    assert "no system here" in refusal(swarm, "/v1/chat/completions", body)["message"]
    assert send(swarm, "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200  # and the next one is answered


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 200_000, 400),
        (b'{"model": NaN}', 400),
        (b'{"\\ud800": 1}', 400),
        (b" " * ((8 << 20) + 1), 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(swarm: GatewaySwarm, body: bytes, status: int) -> None:
    assert refusal(swarm, "/v1/chat/completions", body, status)["type"] == "invalid_request_error"


def test_unknown_paths_and_methods_have_the_same_form(swarm: GatewaySwarm) -> None:
    assert refusal(swarm, "/v1/nothing", {}, 404)["type"] == "not_found_error"
    status, headers, found = send(swarm, "/v1/chat/completions", None, "GET")
    assert status == 405 and headers["allow"] == "POST" and found["error"]["message"]


def test_pages_of_others_are_not_answered(swarm: GatewaySwarm) -> None:
    """Neither a page that asks our address, nor a name of its own that it points to this machine."""
    own, body = urlsplit(swarm.url).netloc, json.dumps(CHAT).encode()
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        status, _, found = send(swarm, "/v1/chat/completions", body, **headers)
        assert (status, found["error"]["code"]) == (403, "foreign_origin"), headers
    assert send(swarm, "/v1/chat/completions", body, Origin=f"http://{own}")[0] == 200
    assert send(swarm, "/v1/chat/completions", body, **{"Content-Type": "text/plain"})[0] == 400


def test_health_names_the_models(swarm: GatewaySwarm) -> None:
    expected = (200, {"status": "ok", "models": {"tiny": True}, "requests": 0})
    assert eventually(lambda: send(swarm, "/health", None, "GET")[::2] == expected), (
        "an earlier request may end behind its answer"
    )


def test_the_description_names_every_field(swarm: GatewaySwarm) -> None:
    _, _, found = send(swarm, "/openapi.json", None, "GET")
    fields = found["components"]["schemas"]["ChatBody"]["properties"]
    assert {"temperature", "tools", "logit_bias", "max_completion_tokens"} <= set(fields)
    assert "Not supported" in fields["functions"]["description"] and set(found["paths"]) >= {"/v1/completions", "/health"}
