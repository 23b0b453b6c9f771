"""Every API's client offers a tool, and sends back its result.

The model's layers add nothing, so each token follows from the one before: the test decides what it says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest
from anthropic import Anthropic
from anthropic import BadRequestError as AnthropicBadRequest
from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError, OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

CALL = '{"name": "add", "arguments": {"a": 1, "b": 41}}'
SAYS = {":": "<tool_call>", "<tool_call>": CALL, CALL: "</tool_call>", ">": "It is 42."}
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}{{ m.role[:1] }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% if m.role == 'tool' %}{{ m.name }}{% endif %}"
    "{% endfor %}{% if messages[-1].role == 'tool' %}>{% elif false %}<tool_call>{% else %}:{% endif %}"
)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
USER = {"role": "user", "content": "What is 1 + 41?"}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    made = WireSwarm(make_speaker(tmp_path_factory.mktemp("models") / "tiny", TEMPLATE, SAYS), [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def ask(client: OpenAI, *messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=[USER, *messages], **{"tools": [TOOL], **fields})


def test_a_tool_is_called_and_its_result_is_answered(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        made = ask(client).choices[0]
        (call,) = made.message.tool_calls
        assert (made.finish_reason, made.message.content, call.type) == ("tool_calls", None, "function")
        assert call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1, "b": 41}
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        made = ask(client, made.message, result).choices[0]
        assert (made.finish_reason, made.message.content, made.message.tool_calls) == ("stop", "It is 42.", None)

    with_client(swarm, work)


def test_calls_are_streamed(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        parts = [part.choices[0] for part in ask(client, stream=True, n=2)]
        for choice in (0, 1):
            own = [part for part in parts if part.index == choice]
            (call,) = [call for part in own for call in part.delta.tool_calls or ()]
            assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "add", {"a": 1, "b": 41})
            assert "".join(part.delta.content or "" for part in own) == "" and own[-1].finish_reason == "tool_calls"

    with_client(swarm, work)


def test_the_template_sees_tools_calls_and_names_of_results(swarm: WireSwarm) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    talk = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c1", "content": "42"}]
    offered = json.dumps({"name": "add", "description": "", "parameters": TOOL["function"]["parameters"]})

    def work(client: OpenAI) -> None:
        rendered = offered + "u" + USER["content"] + 'a{"a": 1}' + "t42add" + ">"
        assert ask(client, *talk).usage.prompt_tokens == len(rendered)
        plain = ask(client, tool_choice="none")
        assert plain.usage.prompt_tokens == len("u" + USER["content"] + ":")
        text = plain.choices[0].message
        assert text.tool_calls is None and text.content == f"<tool_call>{CALL}</tool_call>"

    with_client(swarm, work)


def test_what_was_not_offered_is_text(swarm: WireSwarm) -> None:
    other = {"type": "function", "function": {"name": "multiply"}}

    def work(client: OpenAI) -> None:
        made = ask(client, tools=[other]).choices[0]
        assert (made.finish_reason, made.message.tool_calls) == ("stop", None)
        assert made.message.content == f"<tool_call>{CALL}</tool_call>"

    with_client(swarm, work)


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"a": DEEP}
LISTED = {"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}
BAD_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "[1]"}}


@pytest.mark.parametrize(
    ("messages", "fields", "param"),
    [
        ([], {"tool_choice": "required", "tools": []}, "tool_choice"),
        ([], {"tool_choice": {"type": "function", "function": {"name": "rm"}}}, "tool_choice"),
        ([], {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}}, "tool_choice"),
        ([], {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ([], {"tools": [LISTED], "tool_choice": "required"}, "tools"),
        ([], {"tools": [{"type": "function", "function": {"name": "a", "parameters": DEEP}}]}, "tools.0.function.parameters"),
        ([], {"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools.0"),
        ([], {"tools": [TOOL] * 129}, "tools"),
        ([{"role": "tool", "tool_call_id": "c9", "content": "42"}], {}, "messages.1.tool_call_id"),
        ([{"role": "tool", "content": "42"}], {}, "messages.1.tool_call_id"),
        ([{"role": "user", "content": "x", "tool_call_id": "c1"}], {}, "messages.1.tool_call_id"),
        ([{"role": "assistant", "tool_calls": [BAD_CALL]}], {}, "messages.1.tool_calls.0.function.arguments"),
        ([{"role": "user", "content": "x", "tool_calls": [BAD_CALL]}], {}, "messages.1.tool_calls"),
        ([{"role": "assistant"}], {}, "messages.1.content"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_done_is_refused_by_name(
    swarm: WireSwarm, messages: list[Any], fields: dict[str, Any], param: str
) -> None:
    def work(client: OpenAI) -> None:
        with pytest.raises(BadRequestError) as refused:
            ask(client, *messages, **fields)
        body: Any = refused.value.body
        assert body["param"].startswith(param) and body["param"].partition(".")[0] in body["message"], body

    with_client(swarm, work)


ADD: Any = {"name": "add", "input_schema": TOOL["function"]["parameters"]}


def use(client: Anthropic, *messages: Any, **fields: Any) -> Any:
    return client.messages.create(model="tiny", max_tokens=50, messages=[USER, *messages], **{"tools": [ADD], **fields})


def with_anthropic(swarm: WireSwarm, work: Callable[[Anthropic], None]) -> None:
    def run(client: OpenAI) -> None:
        with Anthropic(
            base_url=str(client.base_url).removesuffix("/v1/"), api_key="none", max_retries=0, timeout=LIMIT_S
        ) as made:
            work(made)

    with_client(swarm, run)


def test_anthropics_client_uses_a_tool(swarm: WireSwarm) -> None:
    def work(client: Anthropic) -> None:
        made = use(client)
        (block,) = made.content
        assert (made.stop_reason, block.type, block.name, block.input) == ("tool_use", "tool_use", "add", {"a": 1, "b": 41})
        events = list(use(client, stream=True))
        kinds = ["content_block_start", "content_block_delta", "content_block_stop"]
        assert [event.type for event in events] == ["message_start", *kinds, "message_delta", "message_stop"]
        assert events[1].content_block.name == "add" and json.loads(events[2].delta.partial_json) == {"a": 1, "b": 41}
        assert events[-2].delta.stop_reason == "tool_use" and len(block.id) == 9  # as Mistral's templates want it
        result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "42"}]}
        talk = ({"role": "assistant", "content": made.content}, {"role": "user", "content": [result]})
        made = use(client, *talk)
        assert (made.stop_reason, [block.text for block in made.content]) == ("end_turn", ["It is 42."])
        offered = json.dumps({"name": "add", "description": "", "parameters": ADD["input_schema"]})
        rendered = offered + "u" + USER["content"] + 'a{"a": 1, "b": 41}' + "t42add" + ">"
        counted = client.messages.count_tokens(model="tiny", messages=[USER, *talk], tools=[ADD])
        assert counted.input_tokens == made.usage.input_tokens == len(rendered)
        assert use(client, tool_choice={"type": "none"}).stop_reason == "end_turn"

    with_anthropic(swarm, work)


RESULT = {"type": "tool_result", "tool_use_id": "t9", "content": "42"}
USE = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}


@pytest.mark.parametrize(
    ("messages", "fields", "name"),
    [
        ([], {"tool_choice": {"type": "any"}, "tools": []}, "tool_choice"),
        ([], {"tool_choice": {"type": "tool", "name": "rm"}}, "tool_choice"),
        ([], {"tool_choice": {"type": "any", "name": "add"}}, "tool_choice.name"),
        ([], {"tool_choice": {"type": "none", "disable_parallel_tool_use": True}}, "disable_parallel_tool_use"),
        ([], {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ([], {"tools": [{"name": "a", "input_schema": DEEP}]}, "tools.0.input_schema"),
        ([{"role": "user", "content": [RESULT]}], {}, "tool_use_id"),
        ([{"role": "user", "content": [USE]}], {}, "tool_use"),
        ([{"role": "assistant", "content": [RESULT]}, USER], {}, "tool_result"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_anthropics_api_cannot_do_is_refused_by_name(swarm: WireSwarm, messages: list[Any], fields: Any, name: str) -> None:
    def work(client: Anthropic) -> None:
        with pytest.raises(AnthropicBadRequest, match=name):
            use(client, *messages, **fields)

    with_anthropic(swarm, work)


def test_ollamas_client_uses_a_tool(swarm: WireSwarm) -> None:
    def work(openai: OpenAI) -> None:
        client = ollama.Client(host=str(openai.base_url).removesuffix("/v1/"), timeout=LIMIT_S)
        made = client.chat("tiny", [USER], tools=[TOOL])
        (call,) = made.message.tool_calls or ()
        assert (call.function.name, call.function.arguments, made.done_reason) == ("add", {"a": 1, "b": 41}, "stop")
        lines = list(client.chat("tiny", [USER], tools=[TOOL], stream=True))
        assert [line.message.tool_calls is not None for line in lines] == [True, False] and lines[-1].done
        result = {"role": "tool", "tool_name": "add", "content": "42"}
        answer = client.chat("tiny", [USER, made.message, result], tools=[TOOL])
        assert (answer.message.content, answer.message.tool_calls) == ("It is 42.", None)
        offered = json.dumps({"name": "add", "description": "", "parameters": TOOL["function"]["parameters"]})
        rendered = offered + "u" + USER["content"] + 'a{"a": 1, "b": 41}' + "t42add" + ">"
        assert answer.prompt_eval_count == len(rendered)

    with_client(swarm, work)


FUNCTION: Any = {"type": "function", "name": "add", "parameters": TOOL["function"]["parameters"], "strict": None}


def respond(client: OpenAI, *items: Any, **fields: Any) -> Any:
    return client.responses.create(model="tiny", input=[USER, *items], **{"tools": [FUNCTION], **fields})


def test_a_tool_is_called_in_a_response(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        made = respond(client)
        (call,) = made.output
        assert (made.status, call.type, call.name, json.loads(call.arguments)) == (
            "completed",
            "function_call",
            "add",
            {"a": 1, "b": 41},
        )
        events = list(respond(client, stream=True))
        kinds = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
        assert [event.type.removeprefix("response.") for event in events] == ["created", "in_progress", *kinds, "completed"]
        assert json.loads(events[3].delta) == {"a": 1, "b": 41} and events[-2].item == events[-1].response.output[0]
        assert len(call.call_id) == 9  # as Mistral's templates want it
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "42"}
        answer = respond(client, *made.output, result)
        assert (answer.output_text, len(answer.output)) == ("It is 42.", 1)
        offered = json.dumps({"name": "add", "description": "", "parameters": FUNCTION["parameters"]})
        rendered = offered + "u" + USER["content"] + 'a{"a": 1, "b": 41}' + "t42add" + ">"
        assert answer.usage.input_tokens == len(rendered)
        assert respond(client, tool_choice="none").output_text == f"<tool_call>{CALL}</tool_call>"

    with_client(swarm, work)


@pytest.mark.parametrize(
    ("items", "fields", "param"),
    [
        ([], {"tool_choice": "required", "tools": []}, "tool_choice"),
        ([], {"tools": [{"type": "web_search"}]}, "tools.0"),
        ([], {"tool_choice": {"type": "function", "name": "rm"}}, "tool_choice"),
        ([{"type": "function_call_output", "call_id": "c9", "output": "42"}], {}, "input.1.call_id"),
        ([{"type": "function_call", "call_id": "c1", "name": "add", "arguments": "["}], {}, "input.1.arguments"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_responses_cannot_do_is_refused_by_name(swarm: WireSwarm, items: list[Any], fields: Any, param: str) -> None:
    def work(client: OpenAI) -> None:
        with pytest.raises(BadRequestError) as refused:
            respond(client, *items, **fields)
        body: Any = refused.value.body
        assert body["param"].startswith(param), body

    with_client(swarm, work)


def test_langchain_binds_a_tool(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        model = ChatOpenAI(model="tiny", base_url=str(client.base_url), api_key="none", max_retries=0)  # type: ignore[arg-type]
        made = model.bind_tools([TOOL]).invoke([("user", USER["content"])])
        (call,) = made.tool_calls
        assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 41})
        talk = [("user", USER["content"]), made, ToolMessage("42", tool_call_id=call["id"])]
        assert model.bind_tools([TOOL]).invoke(talk).text == "It is 42."

    with_client(swarm, work)
