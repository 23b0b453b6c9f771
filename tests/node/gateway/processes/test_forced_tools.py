"""Every API's client forces calls of tools.

The model has random weights: without force, it calls nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from anthropic import Anthropic
from anthropic import BadRequestError as AnthropicBadRequest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError, OpenAI
from pydantic import BaseModel
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.end_to_end.local_swarm import make_llama
from tests.end_to_end.wire import WireSwarm
from tests.families import add_byte_tokenizer
from tests.node.gateway.processes.conftest import LIMIT_S
from tests.node.gateway.processes.toy_gateway import with_client

TEMPLATE = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}{% if false %}<tool_call>{% endif %}:"
PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Zürich", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
USER = {"role": "user", "content": "And?"}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", PLACE), tool("time", NOTHING)]


MISTRAL = TEMPLATE.replace("<tool_call>", "[TOOL_CALLS][ARGS]")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WireSwarm]:
    yield from make_swarm(tmp_path_factory.mktemp("models") / "tiny", TEMPLATE, ("<tool_call>", "</tool_call>"))


@pytest.fixture
def mistral(tmp_path: Path) -> Iterator[WireSwarm]:
    """Its marks are no text."""
    yield from make_swarm(tmp_path / "tiny", MISTRAL, (), ("[TOOL_CALLS]", "[ARGS]"))


def make_swarm(folder: Path, template: str, words: Sequence[str], special: Sequence[str] = ()) -> Iterator[WireSwarm]:
    path = make_llama(folder)
    add_byte_tokenizer(path)
    (path / "chat_template.jinja").write_text(template)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.add_special_tokens({"eos_token": "<end>", "additional_special_tokens": list(special)})
    tokenizer.save_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    made = WireSwarm(path, [(0, 3), (3, 6)], with_ends=True)
    yield made
    made.close()


def check(name: str, arguments: dict[str, Any]) -> None:
    if name == "time":
        assert arguments == {}
    else:
        assert name == "weather" and arguments["city"] in ("Zürich", "Oslo") and arguments["days"] in range(1, 8)


def ask(client: OpenAI, **fields: Any) -> Any:
    given = {"tools": TOOLS, "tool_choice": "required", "temperature": 1.5, "seed": 1, "max_tokens": 400, **fields}
    return client.chat.completions.create(model="tiny", messages=[USER], **given)


def test_a_call_is_required(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        assert all(one.message.tool_calls is None for one in ask(client, tool_choice="auto", n=4, max_tokens=40).choices)
        num_calls = 0
        for choice in ask(client, n=5).choices:
            assert choice.finish_reason == "length" or not (choice.message.content or "").strip()  # else only the last is cut
            for call in choice.message.tool_calls:
                num_calls += 1
                check(call.function.name, json.loads(call.function.arguments))
        assert num_calls >= 5

    with_client(swarm, work)


def test_calls_that_are_required_are_streamed_and_are_those_of_the_whole(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        (whole,) = ask(client, seed=5).choices
        parts = [part.choices[0] for part in ask(client, seed=5, stream=True)]
        calls = [call for part in parts for call in part.delta.tool_calls or ()]
        assert [call.function.arguments for call in calls] == [call.function.arguments for call in whole.message.tool_calls]
        assert [call.index for call in calls] == list(range(len(calls))) and parts[-1].finish_reason == "tool_calls"

    with_client(swarm, work)


def test_one_tool_is_required_and_once(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for name in ("weather", "time"):
            choice = {"type": "function", "function": {"name": name}}
            made = ask(client, tool_choice=choice, parallel_tool_calls=False, n=4)
            for (call,) in (one.message.tool_calls for one in made.choices):
                assert call.function.name == name
                check(name, json.loads(call.function.arguments))
        numbers = {len(one.message.tool_calls) for one in ask(client, n=12).choices}  # about every second has more
        assert max(numbers) > 1, "without parallel_tool_calls: false, there are several"

    with_client(swarm, work)


def test_only_some_tools_are_allowed(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        for mode in ("auto", "required"):
            named = [{"type": "function", "function": {"name": "time"}}]
            choice = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
            made = ask(client, tool_choice=choice, n=4, logit_bias={"256": 5}, max_tokens=60)
            names = {call.function.name for one in made.choices for call in one.message.tool_calls or ()}
            assert names == {"time"} or (mode == "auto" and not names)
            both: Any = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "time"}]}
            tools: Any = [{"type": "function", **one["function"]} for one in TOOLS]
            found = client.responses.create(model="tiny", input="And?", tools=tools, tool_choice=both, max_output_tokens=40)
            assert {one.name for one in found.output if one.type == "function_call"} == (
                {"time"} if mode == "required" else set()
            )
            echoed: Any = found.tool_choice
            assert echoed.model_dump() == both
        choice["allowed_tools"]["tools"][0]["function"]["name"] = "rm"
        with pytest.raises(BadRequestError, match="tool_choice allows rm, which tools does not offer"):
            ask(client, tool_choice=choice)

    with_client(swarm, work)


def test_marks_that_are_no_text_are_found(mistral: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        numbers = set()
        for choice in ask(client, n=5).choices:
            assert choice.finish_reason == "length" or not choice.message.content
            for call in choice.message.tool_calls:
                check(call.function.name, json.loads(call.function.arguments))
            numbers.add(len(choice.message.tool_calls))
        assert max(numbers) > 1
        (text,) = ask(client, tool_choice="auto", max_tokens=20).choices
        assert text.message.content and text.message.tool_calls is None

    with_client(mistral, work)


def test_responses_have_scores_of_text_and_not_of_calls(swarm: WireSwarm) -> None:
    tools: Any = [{"type": "function", **one["function"], "strict": True} for one in TOOLS]
    include: Any = ["message.output_text.logprobs"]

    def work(client: OpenAI) -> None:
        def made(**fields: Any) -> Any:
            return client.responses.create(
                model="tiny", input="And?", tools=tools, include=include, max_output_tokens=20, **fields
            )

        (message,) = made(top_logprobs=2).output
        (part,) = message.content
        assert part.text and len(part.logprobs) == 20 and all(len(one.top_logprobs) == 2 for one in part.logprobs)
        events = list(made(stream=True))
        (done,) = (one for one in events if one.type == "response.output_text.done")
        deltas = [score for one in events if one.type == "response.output_text.delta" for score in one.logprobs]
        assert (
            [score.token for score in deltas] == [score.token for score in done.logprobs] == [one.token for one in part.logprobs]
        )
        forced = made(tool_choice={"type": "function", "name": "time"}, parallel_tool_calls=False)
        (call,) = client.responses.create(
            model="tiny", input="And?", tools=tools, include=include, tool_choice={"type": "function", "name": "time"},
            parallel_tool_calls=False,
        ).output  # fmt: skip
        assert call.type == "function_call" and forced.status == "incomplete"

    with_client(swarm, work)


def test_scores_of_a_call_come_with_it(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        (made,) = ask(client, logprobs=True, top_logprobs=2, parallel_tool_calls=False).choices
        (call,) = made.message.tool_calls
        text = "".join(one.token for one in made.logprobs.content)
        assert f'"name": "{call.function.name}"' in text and all(len(one.top_logprobs) == 2 for one in made.logprobs.content)
        parts = [part.choices[0] for part in ask(client, logprobs=True, parallel_tool_calls=False, stream=True)]
        assert "".join(one.token for part in parts for one in (part.logprobs.content if part.logprobs else ())) == text

    with_client(swarm, work)


def test_strict_tools_and_a_schema_leave_the_choice_to_the_model(swarm: WireSwarm) -> None:
    """The likeliest token of random weights begins a call if a bias says so."""
    strict = [tool("weather", PLACE, strict=True)]
    form = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"enum": ["yes", "no"]}}}

    def work(client: OpenAI) -> None:
        for number in range(2):
            (called,) = ask(
                client, tools=strict, tool_choice="auto", logit_bias={"256": 100}, seed=number, parallel_tool_calls=False
            ).choices
            (call,) = called.message.tool_calls
            check("weather", json.loads(call.function.arguments))
        (text,) = ask(client, tools=strict, tool_choice="auto", logit_bias={"256": -100}, max_tokens=40).choices
        assert text.message.tool_calls is None and text.message.content
        (made,) = ask(client, tool_choice="auto", response_format=form, logit_bias={"256": -100}).choices
        assert (made.message.tool_calls, json.loads(made.message.content)) in ((None, "yes"), (None, "no"))
        (made,) = ask(
            client, tool_choice="auto", response_format=form, logit_bias={"256": 100}, parallel_tool_calls=False
        ).choices
        assert made.message.content is None and len(made.message.tool_calls) == 1

    with_client(swarm, work)


def test_a_schema_that_is_not_supported_is_refused_only_if_it_is_strict(swarm: WireSwarm) -> None:
    odd = {"properties": {"a": {"type": "string", "maxLength": 3, "format": "colour"}}, "additionalProperties": False}

    def work(client: OpenAI) -> None:
        assert ask(client, tools=[tool("paint", odd)]).choices[0].message.tool_calls
        with pytest.raises(BadRequestError, match="Unknown format: colour"):
            ask(client, tools=[tool("paint", odd, strict=True)])

    with_client(swarm, work)


def test_anthropics_client_forces_tools(swarm: WireSwarm) -> None:
    tools: Any = [{"name": "weather", "input_schema": PLACE, "strict": True}, {"name": "time", "input_schema": NOTHING}]

    def work(openai: OpenAI) -> None:
        with Anthropic(
            base_url=str(openai.base_url).removesuffix("/v1/"), api_key="none", max_retries=0, timeout=LIMIT_S
        ) as client:

            def use(**choice: Any) -> Any:
                more: Any = {"seed": 3, "temperature": 1.0}
                return client.messages.create(
                    model="tiny", max_tokens=400, messages=[{"role": "user", "content": "And?"}], tools=tools,
                    tool_choice=choice, extra_body=more,
                )  # fmt: skip

            made = use(type="any")
            assert made.stop_reason == "tool_use"
            for block in made.content:
                if block.type == "tool_use":
                    check(block.name, block.input)
            (block,) = use(type="tool", name="weather", disable_parallel_tool_use=True).content
            assert block.name == "weather"
            check(block.name, block.input)
            assert use(type="auto", disable_parallel_tool_use=True).content

    with_client(swarm, work)


def test_anthropics_client_gets_answers_of_a_schema(swarm: WireSwarm) -> None:
    def work(openai: OpenAI) -> None:
        with Anthropic(
            base_url=str(openai.base_url).removesuffix("/v1/"), api_key="none", max_retries=0, timeout=LIMIT_S
        ) as client:
            given: Any = {"model": "tiny", "max_tokens": 200, "messages": [{"role": "user", "content": "And?"}]}
            made = client.messages.parse(**given, output_format=Weather)
            assert isinstance(made.parsed_output, Weather)
            older = {"output_format": {"type": "json_schema", "schema": Weather.model_json_schema()}}
            (block,) = client.messages.create(**given, extra_body=older).content
            assert block.type == "text" and Weather.model_validate_json(block.text)
            for body, message in (
                ({**older, "output_config": {"format": older["output_format"]}}, "send one of the two"),
                (
                    {"output_config": {"effort": "low"}},
                    "output_config.effort: this model's chat template does not say that it thinks",
                ),
            ):
                with pytest.raises(AnthropicBadRequest, match=message):
                    client.messages.create(**given, extra_body=body)

    with_client(swarm, work)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}], ids=["any", "named"])
def test_responses_force_tools(swarm: WireSwarm, choice: Any) -> None:
    tools: Any = [{"type": "function", **one["function"]} for one in TOOLS]

    def work(client: OpenAI) -> None:
        made = client.responses.create(
            model="tiny", input="And?", tools=tools, tool_choice=choice, temperature=1.0, parallel_tool_calls=False
        )
        (call,) = made.output
        assert call.type == "function_call" and made.parallel_tool_calls is False
        check(call.name, json.loads(call.arguments))
        echoed: Any = made.tool_choice
        assert (echoed if isinstance(echoed, str) else echoed.model_dump()) == choice

    with_client(swarm, work)


class Weather(BaseModel):
    """Of a place."""

    city: Literal["Zürich", "Oslo"]
    days: Literal[1, 2, 3]


def test_langchain_gets_structured_output_by_a_forced_call(swarm: WireSwarm) -> None:
    def work(client: OpenAI) -> None:
        model = ChatOpenAI(model="tiny", base_url=str(client.base_url), api_key="none", max_retries=0)  # type: ignore[arg-type]
        assert isinstance(model.with_structured_output(Weather, method="function_calling").invoke("And?"), Weather)
        made = model.bind_tools(TOOLS, tool_choice="any", strict=True, parallel_tool_calls=False).invoke("And?")
        assert isinstance(made, AIMessage)
        (call,) = made.tool_calls
        check(call["name"], call["args"])

    with_client(swarm, work)
