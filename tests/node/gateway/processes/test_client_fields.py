"""What official clients send beside a question.

It is taken if no answer depends on it, else refused by name.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import ollama
import pytest
from anthropic import Anthropic
from anthropic import BadRequestError as AnthropicBadRequest
from openai import BadRequestError, OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.test_thoughts import SAYS, TEMPLATE, THINKS
from tests.node.gateway.processes.test_tools import TOOL, USER, ask
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

CACHED: Any = {"mode": "explicit", "ttl": "30m"}
HINTS: Any = {
    "metadata": {"a": "b"}, "prompt_cache_key": "x", "prompt_cache_options": CACHED, "prompt_cache_retention": "24h",
    "safety_identifier": "x", "service_tier": "auto", "store": False, "user": "x",
}  # fmt: skip
IMAGE = "data:image/png;base64,AA"
CLEARED = {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    template = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}{{ m.name }}")
    folder = make_speaker(tmp_path_factory.mktemp("models") / "tiny", template, SAYS, ("<think>", "</think>"))
    made = WireSwarm(folder, [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def url_of(client: OpenAI) -> str:
    return str(client.base_url).removesuffix("/v1/")


def test_chats_take_what_changes_nothing(swarm: WireSwarm) -> None:
    text: Any = {"type": "text", "text": "hi", "prompt_cache_breakpoint": CACHED, "cache_control": {"type": "ephemeral"}}

    def work(client: OpenAI) -> None:
        more: Any = {"verbosity": "medium", "prediction": {"type": "content", "content": "x"}}
        said = [ask(client, {"role": "user", "content": [text]}, **fields) for fields in ({}, HINTS | more)]
        assert said[0].choices[0].message.content == said[1].choices[0].message.content == "I add."
        assert said[0].usage == said[1].usage
        named = ask(client, {"role": "user", "content": [text], "name": "anna"})
        assert named.usage.prompt_tokens == said[0].usage.prompt_tokens + len("anna"), "the template shows it"
        for field, value in (("metadata", {"a": 1}), ("metadata", {"a" * 65: "b"}), ("verbosity", "low"), ("store", True)):
            with pytest.raises(BadRequestError, match=field):
                ask(client, extra_body={field: value})

    with_client(swarm, work)


def test_answers_are_taken_back_as_clients_dump_them(swarm: WireSwarm) -> None:
    offered: Any = {"type": "function", **TOOL["function"], "strict": False}

    def work(client: OpenAI) -> None:
        message = ask(client).choices[0].message
        dumped: Any = message.model_dump()
        dumped["tool_calls"][0]["index"] = 0  # as in a stream
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"}
        assert ask(client, dumped, result).choices[0].message.content == "It is 42."
        made = client.responses.create(model="tiny", input="And?", tools=[offered])
        output: Any = [item.model_dump() for item in made.output]
        items: Any = [{"role": "user", "content": "And?"}, *output, {
            "type": "function_call_output", "call_id": output[-1]["call_id"], "output": "42",
        }]  # fmt: skip
        assert client.responses.create(model="tiny", input=items).output_text == "It is 42."
        with Anthropic(base_url=url_of(client), api_key="none", max_retries=0, timeout=LIMIT_S) as other:
            use: Any = {"name": "add", "input_schema": TOOL["function"]["parameters"], "eager_input_streaming": True}
            asked: Any = {"model": "tiny", "max_tokens": 50, "tools": [use], "thinking": {"type": "adaptive"}}
            said = other.messages.create(messages=[USER], extra_body=CLEARED, **asked)  # type: ignore[list-item]
            blocks: Any = [block.model_dump() for block in said.content]
            answer: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": blocks[-1]["id"], "content": "42"}]}
            talk: Any = [USER, {"role": "assistant", "content": blocks}, answer]
            assert other.messages.create(messages=talk, **asked).content[0].text == "It is 42."  # type: ignore[union-attr]

    with_client(swarm, work)


def test_responses_take_hints_and_repeat_metadata(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        more: Any = {
            "include": ["web_search_call.action.sources"], "max_tool_calls": 3, "text": {"verbosity": "medium"},
            "reasoning": {"summary": "detailed", "effort": "low"},
        }  # fmt: skip
        made = client.responses.create(model="tiny", input="And?", **HINTS, **more)
        assert made.output_text.startswith("I add.") and made.metadata == HINTS["metadata"]

    with_client(swarm, work)


def test_variables_of_the_template_say_how_much_a_model_thinks(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for variables, thought in (
            ({"enable_thinking": False}, None), ({"enable_thinking": True}, THINKS), ({"thinking": False}, None),
            ({"enable_thinking": True, "reasoning_effort": "low"}, THINKS), ({}, THINKS),
        ):  # fmt: skip
            message = ask(client, extra_body={"chat_template_kwargs": variables}).choices[0].message
            assert getattr(message, "reasoning_content", None) == thought, variables
        for wrong, what in (({"a": 1}, "chat_template_kwargs.a"), ({"enable_thinking": "no"}, "enable_thinking")):
            with pytest.raises(BadRequestError, match=what):
                ask(client, extra_body={"chat_template_kwargs": wrong})
        with pytest.raises(BadRequestError, match=r"reasoning_effort and .*enable_thinking say different things"):
            ask(client, reasoning_effort="high", extra_body={"chat_template_kwargs": {"enable_thinking": False}})

    with_client(swarm, work)


def test_images_are_refused_by_name(swarm: WireSwarm) -> None:
    of_anthropic: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
    parts: Any = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    item: Any = {"role": "user", "content": [{"type": "input_image", "image_url": IMAGE, "detail": "auto"}]}

    def work(client: OpenAI) -> None:
        with pytest.raises(BadRequestError, match=r"messages.1.content.1.type: .*'image_url'; models here read text only"):
            ask(client, {"role": "user", "content": parts})
        with pytest.raises(BadRequestError, match=r"input.0.content.0.type: .*'input_image'; models here read text only"):
            client.responses.create(model="tiny", input=[item])
        with Anthropic(base_url=url_of(client), api_key="none", max_retries=0, timeout=LIMIT_S) as other:
            talk: Any = [{"role": "user", "content": [of_anthropic]}]
            with pytest.raises(AnthropicBadRequest, match=r"messages.0.content.0.type: .*'image'; models here read text only"):
                other.messages.create(model="tiny", max_tokens=5, messages=talk)
        with pytest.raises(ollama.ResponseError, match=r"messages.0.images is not supported"):
            ollama.Client(host=url_of(client)).chat("tiny", [{"role": "user", "content": "a", "images": [b"\x89PNG"]}])

    with_client(swarm, work)


def test_programs_for_ollama_find_what_they_look_for(swarm: WireSwarm) -> None:
    talk: Any = [
        USER,
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "42", "tool_name": "add", "tool_call_id": "1"},
    ]

    def work(client: OpenAI) -> None:
        native = ollama.Client(host=url_of(client))
        assert [model.model for model in native.ps().models] == ["tiny"]
        assert native.show("tiny").capabilities == ["completion", "embedding", "tools", "thinking"]
        assert len(native.embed("tiny", "a", options={"num_ctx": 100}).embeddings) == 1
        connection = http.client.HTTPConnection(urlsplit(url_of(client)).netloc, timeout=LIMIT_S)
        connection.request("HEAD", "/")
        assert connection.getresponse().status == 200
        connection.close()
        body = {"model": "tiny", "messages": talk, "tools": [TOOL], "stream": False}
        connection.request("POST", "/api/chat", json.dumps(body))
        assert json.loads(connection.getresponse().read())["message"]["content"] == "It is 42."
        connection.close()

    with_client(swarm, work)
