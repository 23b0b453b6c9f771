"""Thoughts between `<think>` and `</think>`, as clients of every API get them.

The model's layers add nothing, so each token follows from the one before, as in `test_tools.py`. Its marks are special tokens, which texts
leave out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from openai import OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.test_tools import CALL, TOOL, USER, ask
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

THOUGHT, TEXT = f"\nHm: <tool_call>{CALL}</tool_call>?\n", "\n\nI add."
THINKS = THOUGHT.strip()
SAYS = {
    ":": "<think>", "<think>": THOUGHT, THOUGHT: "</think>", "</think>": TEXT, TEXT: "<tool_call>", "<tool_call>": CALL,
    CALL: "</tool_call>", ">": "It is 42.",
}  # fmt: skip
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}{{ m.role[:1] }}{{ m.content }}"
    "{{ m.reasoning_content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    "{% if messages[-1].role == 'tool' %}>{% elif false %}<tool_call>{% elif messages[0].role == 'system' %}<think>"
    "{% elif enable_thinking is defined and not enable_thinking %}<think></think>{% else %}:{% endif %}"
)
BEGIN: Any = {"role": "system", "content": "Begin."}
"""With it, the template puts the first mark into the prompt."""

YES: Any = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"enum": ["yes"]}}}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    made = WireSwarm(make_speaker(folder, TEMPLATE, SAYS, ("<think>", "</think>")), [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def test_a_model_thinks_speaks_and_calls(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for first in ([], [BEGIN]):
            made = client.chat.completions.create(model="tiny", messages=[*first, USER], tools=[TOOL], logprobs=True)
            (choice,) = made.choices
            (call,) = choice.message.tool_calls
            assert (choice.finish_reason, choice.message.content, choice.message.reasoning_content) == (
                "tool_calls",
                "I add.",
                THINKS,
            )
            assert call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1, "b": 41}
            assert len(choice.logprobs.content) == made.usage.completion_tokens - 1, "all but the end token"
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        with_thoughts = ask(client, choice.message, result)
        made = with_thoughts.choices[0]
        assert (made.message.content, hasattr(made.message, "reasoning_content")) == ("It is 42.", False)
        without = ask(client, {**choice.message.model_dump(exclude_none=True), "reasoning_content": None}, result)
        assert with_thoughts.usage.prompt_tokens > without.usage.prompt_tokens, "the template has got the thoughts"

    with_client(swarm, work)


def test_thoughts_are_streamed_before_the_text(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for first in ([], [BEGIN]):
            parts = [
                part.choices[0]
                for part in client.chat.completions.create(model="tiny", messages=[*first, USER], tools=[TOOL], stream=True)
            ]
            thoughts = [getattr(part.delta, "reasoning_content", None) or "" for part in parts]
            texts = [part.delta.content or "" for part in parts]
            assert ("".join(thoughts), "".join(texts)) == (THINKS, "I add.")
            last = max(at for at, thought in enumerate(thoughts) if thought)
            assert not any(texts[: last + 1]) and [
                call.function.name for part in parts for call in part.delta.tool_calls or ()
            ] == ["add"]

    with_client(swarm, work)


def test_an_answer_that_ends_in_its_thought_is_one_and_a_stop_text_may_end_it(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        made = ask(client, max_tokens=2).choices[0]
        assert (made.finish_reason, made.message.content, made.message.reasoning_content) == ("length", "", THINKS + "\n")
        made = ask(client, stop="<tool").choices[0]
        assert (made.finish_reason, made.message.content, made.message.reasoning_content) == ("stop", "", "Hm: ")

    with_client(swarm, work)


def test_json_and_forced_calls_come_behind_the_thought(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for first in ([], [BEGIN]):
            asked: Any = {"model": "tiny", "messages": [*first, USER], "max_tokens": 400}
            message: Any = client.chat.completions.create(**asked, response_format=YES).choices[0].message
            assert (json.loads(message.content), message.reasoning_content) == ("yes", THINKS)
            made: Any = client.chat.completions.create(**asked, tools=[TOOL], tool_choice="required").choices[0]
            assert (made.message.content, made.message.reasoning_content, made.finish_reason) == (None, THINKS, "tool_calls")
            assert [call.function.name for call in made.message.tool_calls] == ["add"]

    with_client(swarm, work)


def test_ollamas_client_gets_thoughts_apart(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        native = ollama.Client(host=str(client.base_url).removesuffix("/v1/"))
        said = native.chat("tiny", [USER], tools=[TOOL]).message
        assert (said.thinking, said.content, len(said.tool_calls or ())) == (THINKS, "I add.", 1)
        made = native.generate("tiny", "hi", options={"num_predict": 4})
        assert (made.thinking, made.response) == (THINKS, "I add.")
        assert native.generate("tiny", ":", raw=True, options={"num_predict": 2}).thinking is None

    with_client(swarm, work)
