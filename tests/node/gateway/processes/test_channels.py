"""Answers in channels, as gpt-oss writes them.

Thoughts are apart from text, in the fields that clients read, and calls are found and forced.
The model's layers add nothing, so each token follows from the one before, as in `test_tools.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from anthropic import Anthropic
from openai import BadRequestError, OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.test_tools import TOOL, USER, ask
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

ARGUMENTS = '{"a": 1, "b": 41}'
THINKS, ANSWERS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant", "<|channel|>final<|message|>It is 42."
MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
SAYS = {
    ":": THINKS, THINKS: "<|channel|>", "<|channel|>": "commentary to=functions.add ", "commentary to=functions.add ": "<|constrain|>",
    "<|constrain|>": "json", "json": "<|message|>", "<|message|>": ARGUMENTS, ARGUMENTS: "<|call|>", ">": ANSWERS,
}  # fmt: skip
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}{{ m.role[:1] }}{{ m.content }}"
    "{{ m.thinking }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if messages[-1].role == 'tool' %}>{% elif false %}<|channel|><|message|>{% else %}:{% endif %}"
)


YES: Any = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"enum": ["yes"]}}}
SMALL: Any = {"type": "function", "function": {"name": "add", "strict": True, "parameters": {
    "type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False,
}}}  # fmt: skip
THINKER = {
    ":": "<|channel|>", "<|channel|>": "analysis", "analysis": "<|message|>", "<|message|>": "Hm.", "Hm.": "<|end|>",
    "<|end|>": "<|start|>", "<|start|>": "assistant", "assistant": "<|channel|>", "final": "<|message|>",
}  # fmt: skip
"""Thinks in one message after the other."""


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    folder, ends = tmp_path_factory.mktemp("thinkers") / "tiny", ("<|return|>", "<|call|>")
    make_speaker(folder, TEMPLATE, THINKER, MARKS, ends, {"<|channel|>": "final"})
    made = WireSwarm(folder, [(0, 6)], with_ends=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = WireSwarm(make_speaker(folder, TEMPLATE, SAYS, MARKS, ("<|return|>", "<|call|>")), [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def test_a_model_thinks_calls_and_answers(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        made = ask(client).choices[0]
        (call,) = made.message.tool_calls
        assert (made.finish_reason, made.message.content, made.message.reasoning_content) == ("tool_calls", None, "Hm.")
        assert call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1, "b": 41}
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        made = ask(client, made.message, result)
        assert (made.choices[0].finish_reason, made.choices[0].message.content) == ("stop", "It is 42.")
        without = ask(client, {**call_message(call), "reasoning_content": None}, result)
        assert made.usage.prompt_tokens == without.usage.prompt_tokens + len("Hm."), "the template has got the thoughts"
        with pytest.raises(BadRequestError, match="reasoning_content has no place in a message of the role user"):
            ask(client, {**USER, "reasoning_content": "Hm."})

    with_client(swarm, work)


def test_tokens_of_thoughts_are_counted(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        assert ask(client).usage.completion_tokens_details.reasoning_tokens == 1, "a token is the whole message"
        result: Any = [{"role": "assistant", "tool_calls": [CALLED]}, {"role": "tool", "tool_call_id": "1", "content": "42"}]
        assert ask(client, *result).usage.completion_tokens_details.reasoning_tokens == 0

    with_client(swarm, work)


CALLED = {"id": "1", "type": "function", "function": {"name": "add", "arguments": ARGUMENTS}}


def call_message(call: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}


def test_thoughts_are_streamed_and_are_no_text(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        parts = [part.choices[0] for part in ask(client, stream=True)]
        thoughts = "".join(getattr(part.delta, "reasoning_content", None) or "" for part in parts)
        calls = [call.function.name for part in parts for call in part.delta.tool_calls or ()]
        assert (thoughts, calls, parts[-1].finish_reason) == ("Hm.", ["add"], "tool_calls")
        assert not "".join(part.delta.content or "" for part in parts)
        text = client.completions.create(model="tiny", prompt=">").choices[0].text
        assert text == ANSWERS, "a text that is continued is no conversation"

    with_client(swarm, work)


def test_calls_are_forced_into_their_channel(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        made = ask(client, tool_choice="required", max_tokens=200).choices[0]
        (call,) = made.message.tool_calls
        assert call.function.name == "add" and (made.message.content, made.finish_reason) == (None, "tool_calls")

    with_client(swarm, work)


def test_calls_and_json_that_are_forced_come_behind_a_thought(thinker: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        (made,) = ask(client, tools=[SMALL], tool_choice="required").choices
        assert [call.function.name for call in made.message.tool_calls] == ["add"]
        assert (made.message.content, made.message.reasoning_content, made.finish_reason) == (None, "Hm.", "tool_calls")
        made = ask(client, tools=[], response_format=YES)
        (choice,) = made.choices
        assert (json.loads(choice.message.content), choice.message.reasoning_content) == ("yes", "Hm.")
        assert made.usage.completion_tokens_details.reasoning_tokens == 5
        (both,) = ask(client, response_format=YES).choices
        assert json.loads(both.message.content) == "yes" and both.message.reasoning_content == "Hm."

    with_client(thinker, work)


def test_thoughts_that_have_used_their_budget_are_ended(thinker: WireSwarm) -> None:
    """This model thinks in one message after the other, and its answer is the text of a thought."""

    def work(client: OpenAI) -> None:
        for budget, num, thought in (
            (0, 0, None),
            (4, 4, None),
            (5, 5, "Hm."),
            (6, 5, "Hm."),
            (11, 11, "Hm."),
            (13, 12, "Hm.Hm."),
        ):
            made = ask(client, max_tokens=40, extra_body={"thinking_token_budget": budget})
            message = made.choices[0].message
            assert getattr(message, "reasoning_content", None) == thought, budget
            assert message.content.startswith("Hm.") and made.usage.completion_tokens_details.reasoning_tokens == num

    with_client(thinker, work)


def test_other_apis_tell_thoughts_from_text(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        url = str(client.base_url).removesuffix("/v1/")
        native = ollama.Client(host=url)
        said = native.chat("tiny", [USER], tools=[TOOL]).message
        assert said.thinking == "Hm." and not said.content and said.tool_calls is not None
        parts = [part.message for part in native.chat("tiny", [USER], tools=[TOOL], stream=True)]
        assert "".join(part.thinking or "" for part in parts) == "Hm." and sum(len(part.tool_calls or ()) for part in parts) == 1
        again = native.chat("tiny", [USER, said, {"role": "tool", "content": "42", "tool_name": "add"}], tools=[TOOL])
        assert again.message.content == "It is 42."
        made = client.responses.create(
            model="tiny", input="And?", tools=[{"type": "function", **TOOL["function"], "strict": False}]
        )
        assert [item.type for item in made.output] == ["reasoning", "function_call"]
        with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S) as other:
            offered: Any = {"name": "add", "input_schema": TOOL["function"]["parameters"]}
            asked: Any = {"model": "tiny", "max_tokens": 50, "messages": [USER], "tools": [offered]}
            assert [block.type for block in other.messages.create(**asked).content] == ["tool_use"]
            with other.messages.stream(**asked) as stream:
                assert [block.type for block in stream.get_final_message().content] == ["tool_use"]

    with_client(swarm, work)
