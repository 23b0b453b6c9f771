"""Thoughts, answers and calls between Cohere's marks.

The model's layers add nothing, so each token follows from the one before, as in `test_tools.py`. Its marks may be tokens that texts leave
out, or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.test_channels import SMALL, YES
from tests.node.gateway.processes.test_tools import TOOL, USER, ask
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

CALL = '[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1, "b": 41}}\n]'
SAYS = {
    ":": "<|START_THINKING|>", "<|START_THINKING|>": "Hm.", "Hm.": "<|END_THINKING|>", "<|END_THINKING|>": "<|START_ACTION|>",
    "<|START_ACTION|>": CALL, CALL: "<|END_ACTION|>", ">": "<|START_RESPONSE|>", "<|START_RESPONSE|>": "It is 42.",
    "It is 42.": "<|END_RESPONSE|>",
}  # fmt: skip
MARKS = [word for word in SAYS if word.startswith("<|")] + ["<|END_ACTION|>", "<|END_RESPONSE|>"]
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}{% endfor %}{% for m in messages %}{{ m.role[:1] }}{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_plan }}{{ m.tool_calls[0].function.arguments | tojson }}{% endif %}{% endfor %}"
    "{% if messages[-1].role == 'tool' or reasoning is defined and not reasoning %}>{% elif messages[0].role == 'system' %}"
    "<|START_THINKING|>{% elif false %}<|END_THINKING|><|START_RESPONSE|><|END_RESPONSE|><|START_ACTION|>{% else %}:{% endif %}"
)


@pytest.fixture(scope="module", params=[True, False], ids=["special", "plain"])
def swarm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[WireSwarm]:
    folder = make_speaker(tmp_path_factory.mktemp("models") / "tiny", TEMPLATE, SAYS, MARKS if request.param else ())
    made = WireSwarm(folder, [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def test_a_model_thinks_calls_and_answers(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for first, num in (([], 3), ([{"role": "system", "content": "Begin."}], 2)):
            made: Any = client.chat.completions.create(model="tiny", messages=[*first, USER], tools=[TOOL])
            (choice,) = made.choices
            (call,) = choice.message.tool_calls
            assert (choice.message.content, choice.message.reasoning_content, choice.finish_reason) == (None, "Hm.", "tool_calls")
            assert call.function.name == "add" and json.loads(call.function.arguments) == {"a": 1, "b": 41}
            assert made.usage.completion_tokens_details.reasoning_tokens == num
        result = {"role": "tool", "tool_call_id": call.id, "content": "42"}
        back = ask(client, choice.message, result)
        assert (back.choices[0].message.content, back.choices[0].finish_reason) == ("It is 42.", "stop")
        without = ask(client, {**choice.message.model_dump(exclude_none=True), "reasoning_content": None}, result)
        assert back.usage.prompt_tokens > without.usage.prompt_tokens, "the template has got the thoughts"
        parts = [part.choices[0].delta for part in ask(client, choice.message, result, stream=True)]
        assert "".join(part.content or "" for part in parts) == "It is 42."
        assert ask(client, reasoning_effort="none").choices[0].message.content == "It is 42."

    with_client(swarm, work)


def test_json_and_forced_calls_stand_between_the_marks(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for more, thought in (({}, "Hm."), ({"extra_body": {"thinking_token_budget": 2}}, None)):
            made = ask(client, tools=[], response_format=YES, **more).choices[0]
            assert json.loads(made.message.content) == "yes" and getattr(made.message, "reasoning_content", None) == thought
            made = ask(client, tools=[SMALL], tool_choice="required", parallel_tool_calls=False, **more).choices[0]
            (call,) = made.message.tool_calls
            assert json.loads(call.function.arguments) == {"a": 1} and made.finish_reason == "tool_calls"
            assert made.message.content is None and getattr(made.message, "reasoning_content", None) == thought

    with_client(swarm, work)
