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
from anthropic import Anthropic
from anthropic import BadRequestError as AnthropicBadRequest
from openai import BadRequestError, OpenAI

from tests.end_to_end.wire import WireSwarm
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.test_tools import CALL, TOOL, USER, ask
from tests.node.gateway.processes.toy_gateway import with_client
from tests.speaking_model import make_speaker

THOUGHT, TEXT = f"\nHm: <tool_call>{CALL}</tool_call>?\n", "\n\nI add."
THINKS = THOUGHT.strip()
NUM_THINKS = len("Hm: ?") + 3
"""Tokens of it: calls and their marks are tokens of their own."""

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

ADAPTIVE_AND_OFF: Any = ({"type": "adaptive"}, {"type": "disabled"})
YES: Any = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"enum": ["yes"]}}}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    folder = make_speaker(tmp_path_factory.mktemp("models") / "tiny", TEMPLATE, SAYS, ("<think>", "</think>"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "max_position_embeddings": 4096})
    )  # place for a budget of Anthropic's
    made = WireSwarm(folder, [(0, 3), (3, 6)], with_ends=True)
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


def test_every_api_counts_the_tokens_of_thoughts(swarm: WireSwarm) -> None:
    """Those of the marks included: the thought is one token, and so is each mark. A prompt may have the first one."""

    def work(client: OpenAI) -> None:
        for first, num in (([], 3), ([BEGIN], 2)):
            usage = client.chat.completions.create(model="tiny", messages=[*first, USER], tools=[TOOL]).usage
            assert usage is not None and usage.completion_tokens_details is not None
            assert (usage.completion_tokens_details.reasoning_tokens, usage.completion_tokens) == (num, num + 5)
        assert ask(client, max_tokens=2).usage.completion_tokens_details.reasoning_tokens == 2, "it is cut in its thought"
        assert ask(client, reasoning_effort="none").usage.completion_tokens_details.reasoning_tokens == 0
        assert ask(client, n=2).usage.completion_tokens_details.reasoning_tokens == 6
        *_, last = ask(client, stream=True, stream_options={"include_usage": True})
        assert last.usage.completion_tokens_details.reasoning_tokens == 3
        made: Any = client.responses.create(model="tiny", input="And?")
        assert made.usage.output_tokens_details.reasoning_tokens == 3
        *_, done = client.responses.create(model="tiny", input="And?", stream=True)
        assert done.response.usage.output_tokens_details.reasoning_tokens == 3
        text: Any = client.completions.create(model="tiny", prompt=":", max_tokens=4)
        assert text.choices[0].text.startswith(THOUGHT) and text.usage.completion_tokens_details.reasoning_tokens == 0
        with Anthropic(
            base_url=str(client.base_url).removesuffix("/v1/"), api_key="none", max_retries=0, timeout=LIMIT_S
        ) as other:
            asked: Any = {"model": "tiny", "max_tokens": 50, "messages": [USER]}
            usages = [other.messages.create(**asked).usage]
            with other.messages.stream(**asked) as stream:
                usages.append(stream.get_final_message().usage)
        assert [one.output_tokens_details and one.output_tokens_details.thinking_tokens for one in usages] == [3, 3]

    with_client(swarm, work)


def test_a_thought_that_has_used_its_budget_is_ended_and_the_answer_goes_on(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for first, budget, num in (
            ([], 0, 2),
            ([], 2, 2),
            ([], 3, 3),
            ([], 90, 3),
            ([BEGIN], 0, 1),
            ([BEGIN], 1, 1),
            ([BEGIN], 2, 2),
        ):
            more: Any = {"extra_body": {"thinking_token_budget": budget}, "logprobs": True}
            made = client.chat.completions.create(model="tiny", messages=[*first, USER], tools=[TOOL], **more)
            (choice,) = made.choices
            thought = getattr(choice.message, "reasoning_content", None)
            assert (thought, choice.message.content, choice.finish_reason) == (
                THINKS if num == 3 - len(first) else None,
                "I add.",
                "tool_calls",
            )
            assert made.usage is not None and made.usage.completion_tokens_details is not None
            assert made.usage.completion_tokens_details.reasoning_tokens == num
        made = ask(client, tools=[], response_format=YES, extra_body={"thinking_token_budget": 2})
        assert json.loads(made.choices[0].message.content) == "yes" and not hasattr(made.choices[0].message, "reasoning_content")
        assert made.usage.completion_tokens_details.reasoning_tokens == 2
        with pytest.raises(BadRequestError, match=r"thinking_token_budget.* greater than or equal to 0"):
            ask(client, extra_body={"thinking_token_budget": -1})

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


def test_responses_have_an_item_of_thoughts(swarm: WireSwarm) -> None:
    offered: Any = {"type": "function", **TOOL["function"], "strict": False}

    def work(client: OpenAI) -> None:
        asked: Any = {"model": "tiny", "tools": [offered], "max_output_tokens": 50}
        made = client.responses.create(input="And?", **asked)
        assert [item.type for item in made.output] == ["reasoning", "message", "function_call"]
        thought, _, call = made.output
        assert [part.text for part in thought.content] == [THINKS] and thought.id.startswith("rs_") and thought.summary == []
        assert made.output_text == "I add." and call.name == "add"
        with client.responses.stream(input="And?", **asked) as stream:
            events = list(stream)
            final = stream.get_final_response()
        assert [(item.type, item.status) for item in final.output] == [(item.type, item.status) for item in made.output]
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds[2:5] == ["output_item.added", "content_part.added", "reasoning_text.delta"]
        deltas = [event for event in events if event.type == "response.reasoning_text.delta"]
        assert "".join(event.delta for event in deltas) == THINKS == final.output[0].content[0].text
        (done,) = [event for event in events if event.type == "response.reasoning_text.done"]
        assert (done.text, done.item_id, done.output_index) == (THINKS, final.output[0].id, 0)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        ended = [event.output_index for event in events if event.type == "response.output_item.done"]
        assert ended == [0, 1, 2] and kinds.index("output_item.done") < kinds.index("output_text.delta")
        result = {"type": "function_call_output", "call_id": final.output[2].call_id, "output": "42"}
        talk = [{"role": "user", "content": "And?"}, *final.output, result]
        back = client.responses.create(input=talk, **asked)
        without = client.responses.create(input=[talk[0], *talk[2:]], **asked)
        assert back.output_text == "It is 42." and back.usage.input_tokens == without.usage.input_tokens + NUM_THINKS
        cut = client.responses.create(model="tiny", input="And?", max_output_tokens=2)
        assert [(item.type, item.status) for item in cut.output] == [("reasoning", "incomplete")] and cut.output_text == ""
        with client.responses.stream(model="tiny", input="And?", max_output_tokens=2) as stream:
            last = list(stream)[-1].response
        assert [(item.type, item.status) for item in last.output] == [("reasoning", "incomplete")]

    with_client(swarm, work)


def test_messages_have_a_block_of_thoughts_if_they_are_asked_for(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        url = str(client.base_url).removesuffix("/v1/")
        with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S) as other:
            offered: Any = {"name": "add", "input_schema": TOOL["function"]["parameters"]}
            asked: Any = {"model": "tiny", "max_tokens": 2000, "tools": [offered]}
            on: Any = {"type": "enabled", "budget_tokens": 1024}
            plain = other.messages.create(messages=[USER], **asked)
            assert [block.type for block in plain.content] == ["text", "tool_use"], "nothing has asked for thoughts"
            for thinking in (on, {"type": "adaptive"}):
                made: Any = other.messages.create(messages=[USER], thinking=thinking, **asked)
                assert [block.type for block in made.content] == ["thinking", "text", "tool_use"]
                assert (made.content[0].thinking, made.content[0].signature, made.content[1].text) == (THINKS, "", "I add.")
            with other.messages.stream(messages=[USER], thinking=on, **asked) as stream:
                thoughts = "".join(event.thinking for event in stream if event.type == "thinking")
                final = stream.get_final_message()
            assert thoughts == THINKS and [block.type for block in final.content] == ["thinking", "text", "tool_use"]
            assert final.content[0].thinking == THINKS
            result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": final.content[2].id, "content": "42"}]}
            talk: Any = [USER, {"role": "assistant", "content": final.content}, result]
            back = other.messages.create(messages=talk, **asked)
            talk[1] = {"role": "assistant", "content": final.content[1:]}
            without = other.messages.create(messages=talk, **asked)
            assert back.content[0].text == "It is 42." == without.content[0].text
            assert back.usage.input_tokens == without.usage.input_tokens + NUM_THINKS
            with pytest.raises(AnthropicBadRequest, match="a block of the type thinking has no place in a message of the user"):
                other.messages.create(messages=[{"role": "user", "content": [final.content[0]]}], **asked)
            with pytest.raises(AnthropicBadRequest, match="budget_tokens is less than max_tokens"):
                other.messages.create(messages=[USER], thinking={**on, "budget_tokens": 2000}, **asked)

    with_client(swarm, work)


def test_every_api_can_ask_a_model_not_to_think(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        url = str(client.base_url).removesuffix("/v1/")
        for effort, thinks in (("none", False), ("low", True), ("max", True)):
            message = ask(client, reasoning_effort=effort).choices[0].message
            assert (message.content, getattr(message, "reasoning_content", None)) == ("I add.", THINKS if thinks else None)
        message = ask(client, reasoning_effort="none", response_format=YES, tools=[]).choices[0].message
        assert json.loads(message.content) == "yes" and not hasattr(message, "reasoning_content")
        made = client.responses.create(model="tiny", input="And?", reasoning={"effort": "none"})
        assert [item.type for item in made.output] == ["message"] and made.reasoning.effort == "none"
        native = ollama.Client(host=url)
        for think in (False, True, "low"):
            said = native.chat("tiny", [USER], tools=[TOOL], think=think).message
            assert (said.thinking, said.content) == (THINKS if think else None, "I add.")
        with Anthropic(base_url=url, api_key="none", max_retries=0, timeout=LIMIT_S) as other:
            off: Any = {"model": "tiny", "messages": [USER], "thinking": {"type": "disabled"}}
            tokens = other.messages.create(max_tokens=50, **off).usage.input_tokens
            assert other.messages.count_tokens(**off).input_tokens == tokens
            assert tokens == ask(client, reasoning_effort="none", tools=[]).usage.prompt_tokens
            for effort in ("low", "max"):
                wish: Any = {"model": "tiny", "max_tokens": 50, "messages": [USER], "output_config": {"effort": effort}}
                made = [other.messages.create(**wish, thinking=thinking) for thinking in ADAPTIVE_AND_OFF]
                assert [[block.type for block in one.content] for one in made] == [["thinking", "text"], ["text"]]

    with_client(swarm, work)
