"""Anthropic's own client gets what `swarm generate` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm
from tests.node.gateway.processes.test_errors import send
from tests.node.gateway.processes.test_openai_client import NEW, generated

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "ho"}
BODY: dict[str, Any] = {"model": "tiny", "messages": [USER], "max_tokens": 3}


@pytest.fixture(scope="module")
def client(swarm: GatewaySwarm) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=swarm.url.removesuffix("/v1"), api_key="any", max_retries=0, timeout=LIMIT_S) as made:
        yield made


@pytest.mark.parametrize(
    ("fields", "rendered"),
    [
        ({"messages": [USER]}, "u:hi;a:"),
        ({"messages": [USER], "system": "be kind"}, "s:be kind;u:hi;a:"),
        (
            {"messages": [USER], "system": [{"type": "text", "text": "be", "cache_control": {"type": "ephemeral"}}]},
            "s:be;u:hi;a:",
        ),
        ({"messages": [USER, ASSISTANT, USER]}, "u:hi;a:ho;u:hi;a:"),
        ({"messages": [USER, USER]}, "u:hi\nhi;a:"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]}]}, "u:a\nb;a:"),
    ],
    ids=str,
)
def test_a_message_is_what_the_template_makes_of_it_continued(
    swarm: GatewaySwarm, client: anthropic.Anthropic, fields: Any, rendered: str
) -> None:
    expected = generated(swarm, prompt=rendered)
    made = client.messages.create(model="tiny", max_tokens=NEW, **fields)
    assert (made.type, made.role, made.model) == ("message", "assistant", "tiny")
    assert [block.text for block in made.content] == [expected] and made.content[0].type == "text"
    oracle = swarm.client.completions.create(model="tiny", prompt=rendered, max_tokens=NEW)
    assert (made.usage.input_tokens, made.usage.output_tokens) == (len(rendered), oracle.usage.completion_tokens)
    reason = {"stop": "end_turn", "length": "max_tokens"}[oracle.choices[0].finish_reason]
    assert (made.stop_reason, made.stop_sequence) == (reason, None)
    assert client.messages.count_tokens(model="tiny", **fields).input_tokens == len(rendered)
    with client.messages.stream(model="tiny", max_tokens=NEW, **fields) as stream:
        assert "".join(stream.text_stream) == expected
        whole = stream.get_final_message()
    assert (whole.content[0].text, whole.usage, whole.stop_reason) == (expected, made.usage, made.stop_reason)


def test_a_stream_has_the_events_of_the_api_in_their_order(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(model="tiny", max_tokens=4, messages=[USER], stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"} and len(kinds) > 6  # it comes in pieces; the client hides pings
    assert events[0].message.usage.input_tokens == len("u:hi;a:") and events[0].message.id.startswith("msg_")
    assert events[-2].usage.output_tokens == 4 and events[-2].delta.stop_reason == "max_tokens"


TALK: Any = [USER, USER]
RENDERED = "u:hi\nhi;a:"
"""The answer to it is long."""


def test_a_stop_text_is_named_as_the_reason(swarm: GatewaySwarm, client: anthropic.Anthropic) -> None:
    whole = generated(swarm, prompt=RENDERED, new=24)
    stop = whole[4:6]
    assert len(stop) == 2, whole
    fields: dict[str, Any] = {"model": "tiny", "max_tokens": 24, "messages": TALK, "stop_sequences": ["never said", stop]}
    with client.messages.stream(**fields) as stream:
        streamed = stream.get_final_message()
    for made in (client.messages.create(**fields), streamed):
        assert (made.stop_reason, made.stop_sequence) == ("stop_sequence", stop)
        assert made.content[0].text == whole[: whole.index(stop)]


def test_draws_are_those_of_the_command(swarm: GatewaySwarm, client: anthropic.Anthropic) -> None:
    expected = generated(swarm, "--temperature", "0.9", "--top-k", "6", "--top-p", "0.8", "--seed", "5", prompt=RENDERED)
    draws = {"seed": 5, "temperature": 0.9, "top_k": 6, "top_p": 0.8}
    made = client.messages.create(model="tiny", max_tokens=NEW, messages=TALK, extra_body=draws)
    assert made.content[0].text == expected != generated(swarm, prompt=RENDERED)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tools": [{"name": "f", "input_schema": {"type": "object"}}]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"output_format": {"type": "json_schema"}}, "output_format"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, ASSISTANT]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"system": [{"type": "text", "text": "x", "cache_control": {"type": "forever"}}]}, "system.0.cache_control"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "the prompt is too long"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_what_cannot_be_done_is_refused_by_name(
    client: anthropic.Anthropic, change: dict[str, Any], name: str, is_stream: bool
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**BODY, extra_body=change, stream=is_stream)
    body: Any = refused.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert name in body["error"]["message"]


def test_errors_have_their_own_form_and_classes(swarm: GatewaySwarm, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="this gateway serves tiny"):
        client.messages.create(**BODY | {"model": "no-such"})
    for data, status, kind in [(b"{", 400, "invalid_request_error"), (b" " * ((8 << 20) + 1), 413, "request_too_large")]:
        got, _, found = send(swarm, "/v1/messages", data)
        assert (got, found["type"], found["error"]["type"]) == (status, "error", kind)
    got, _, found = send(swarm, "/v1/messages", json.dumps(BODY).encode(), Origin="http://elsewhere.example")
    assert (got, found["error"]["type"]) == (403, "permission_error")
    assert send(swarm, "/v1/messages/count_tokens", b"{}")[2]["type"] == "error"


def test_a_prompt_that_is_too_long_can_be_counted(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "x" * 300}]
    assert client.messages.count_tokens(model="tiny", messages=messages).input_tokens == len("u:;a:") + 300
