"""OpenAI's own client gets what `swarm generate` prints, by `/v1/responses`."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError, NotFoundError

from tests.node.gateway.processes.conftest import GatewaySwarm
from tests.node.gateway.processes.test_errors import refusal
from tests.node.gateway.processes.test_openai_client import NEW, generated

USER = {"role": "user", "content": "hi"}
BODY: dict[str, Any] = {"model": "tiny", "input": "hi", "max_output_tokens": 3}
TWICE: Any = [{"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_text", "text": "hi"}]}]
RENDERED = "u:hi\nhi;a:"
"""The answer to it is long."""


@pytest.mark.parametrize(
    ("fields", "rendered"),
    [
        ({"input": "hi"}, "u:hi;a:"),
        ({"input": "hi", "instructions": "be kind"}, "s:be kind;u:hi;a:"),
        ({"input": [{"role": "developer", "content": "be kind"}, USER]}, "s:be kind;u:hi;a:"),
        ({"input": [USER, {"role": "assistant", "content": "ho"}, {**USER, "type": "message"}]}, "u:hi;a:ho;u:hi;a:"),
        ({"input": TWICE}, RENDERED),
    ],
    ids=str,
)
def test_a_response_is_what_the_template_makes_of_it_continued(swarm: GatewaySwarm, fields: Any, rendered: str) -> None:
    expected = generated(swarm, prompt=rendered)
    oracle = swarm.client.completions.create(model="tiny", prompt=rendered, max_tokens=NEW)
    made = swarm.client.responses.create(model="tiny", max_output_tokens=NEW, **fields)
    assert made.output_text == expected and made.object == "response" and made.error is None
    is_cut = oracle.choices[0].finish_reason == "length"
    assert made.status == made.output[0].status == ("incomplete" if is_cut else "completed")
    assert (made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens") == is_cut
    assert (made.usage.input_tokens, made.usage.output_tokens) == (len(rendered), oracle.usage.completion_tokens)
    assert made.instructions == fields.get("instructions") and made.to_dict()["store"] is False
    with swarm.client.responses.stream(model="tiny", max_output_tokens=NEW, **fields) as stream:
        events = list(stream)
    last = events[-1].response
    assert (last.status, last.usage, last.output_text) == (made.status, made.usage, expected)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == expected


def test_a_stream_has_the_events_of_the_api_in_their_order(swarm: GatewaySwarm) -> None:
    events = list(swarm.client.responses.create(model="tiny", input="hi", max_output_tokens=4, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(kinds[4:-4]) == {"output_text.delta"} and len(kinds) > 9
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].response.status == "in_progress" and events[0].response.id == events[-1].response.id
    assert (
        len({getattr(event, "item_id", None) for event in events[4:-2]}) == 1 and events[-2].item == events[-1].response.output[0]
    )


def test_an_answer_can_be_sent_back_as_it_came(swarm: GatewaySwarm) -> None:
    first = swarm.client.responses.create(model="tiny", input="hi", max_output_tokens=4, include=["message.output_text.logprobs"])
    talk: Any = [USER, *first.output, USER]
    made = swarm.client.responses.create(model="tiny", input=talk, max_output_tokens=NEW)
    assert made.output_text == generated(swarm, prompt=f"u:hi;a:{first.output_text};u:hi;a:")


def test_draws_are_those_of_the_command(swarm: GatewaySwarm) -> None:
    expected = generated(swarm, "--temperature", "1.5", "--top-p", "0.7", "--seed", "4", prompt=RENDERED)
    made = swarm.client.responses.create(
        model="tiny", input=TWICE, max_output_tokens=NEW, temperature=1.5, top_p=0.7, extra_body={"seed": 4}
    )
    assert made.output_text == expected != generated(swarm, prompt=RENDERED)
    assert (made.temperature, made.top_p) == (1.5, 0.7)


def test_scores_are_those_of_chats(swarm: GatewaySwarm) -> None:
    chat: Any = {"model": "tiny", "messages": [{"role": "user", "content": "hi\nhi"}], "max_tokens": NEW}
    oracle = swarm.client.chat.completions.create(**chat, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    asked: Any = {"model": "tiny", "input": TWICE, "max_output_tokens": NEW, "top_logprobs": 3}
    asked["include"] = ["message.output_text.logprobs"]
    made = swarm.client.responses.create(**asked).output[0].content[0].logprobs
    events = list(swarm.client.responses.create(**asked, stream=True))
    streamed = [score for event in events if event.type == "response.output_text.delta" for score in event.logprobs]
    for found in (made, streamed):
        assert [score.token for score in found] == [score.token for score in oracle] and len(found) == NEW
        assert [score.logprob for score in found] == pytest.approx([score.logprob for score in oracle], abs=1e-4)
        assert all(len(score.top_logprobs) == 3 for score in found)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["x" * 100_000]}}}}, "text.format"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"include": ["x"]}, "include.0"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "x"}]}, "input.0.arguments"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {}}, "stream_options"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"stop": "x"}, "stop"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": "x" * 300}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(swarm: GatewaySwarm, change: dict[str, Any], param: str) -> None:
    error = refusal(swarm, "/v1/responses", BODY | change)
    assert error["param"] is not None and error["param"].startswith(param), error
    assert error["type"] == "invalid_request_error"
    with pytest.raises(BadRequestError):
        swarm.client.responses.create(**BODY, extra_body=change)


def test_what_changes_nothing_is_taken(swarm: GatewaySwarm) -> None:
    neutral = {"store": False, "tools": [], "tool_choice": "auto", "truncation": "disabled", "metadata": {}, "background": False,
               "include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}}, "previous_response_id": None}  # fmt: skip
    assert swarm.client.responses.create(**BODY, extra_body=neutral).output_text
    with pytest.raises(NotFoundError, match="this gateway serves tiny"):
        swarm.client.responses.create(**BODY | {"model": "no-such"})
