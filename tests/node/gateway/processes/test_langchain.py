"""LangChain's ChatOpenAI gets what OpenAI's client gets."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI
from openai import BadRequestError

from tests.node.gateway.processes.conftest import GatewaySwarm
from tests.node.gateway.processes.test_openai_client import NEW, generated

TALK = [SystemMessage("be kind"), HumanMessage("hi"), AIMessage("ho"), HumanMessage("hi")]
RENDERED = "s:be kind;u:hi;a:ho;u:hi;a:"


def model(swarm: GatewaySwarm, **fields: Any) -> ChatOpenAI:
    asked: dict[str, Any] = {"max_tokens": NEW, "max_retries": 0, "timeout": 60, **fields}
    return ChatOpenAI(model="tiny", base_url=swarm.url, api_key="none", **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, {"use_responses_api": True, "store": False}], ids=["chat", "responses"])
def test_a_chat_is_what_the_command_prints(swarm: GatewaySwarm, fields: dict[str, Any]) -> None:
    expected = generated(swarm, prompt=RENDERED)
    made = model(swarm, **fields).invoke(TALK)
    assert made.text == expected
    assert made.usage_metadata is not None and made.usage_metadata["input_tokens"] == len(RENDERED)
    parts = list(model(swarm, stream_usage=True, **fields).stream(TALK))
    assert "".join(part.text for part in parts) == expected
    usage = [part.usage_metadata for part in parts if part.usage_metadata is not None]
    assert sum(one["output_tokens"] for one in usage) == made.usage_metadata["output_tokens"]


def test_many_at_once_and_in_a_chain(swarm: GatewaySwarm) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "be kind"), ("user", "{text}")]) | model(swarm) | StrOutputParser()
    found = chain.batch([{"text": text} for text in ("a", "b", "c")])
    assert found == [generated(swarm, prompt=f"s:be kind;u:{text};a:") for text in ("a", "b", "c")]


def test_draws_and_scores(swarm: GatewaySwarm) -> None:
    expected = generated(swarm, "--temperature", "1.5", "--top-p", "0.7", "--seed", "4", prompt="u:hi\nhi;a:")
    made = model(swarm, temperature=1.5, top_p=0.7, seed=4, logprobs=True).invoke("hi\nhi")
    assert made.text == expected and len(made.response_metadata["logprobs"]["content"]) == NEW


def test_structured_output_is_an_object_of_its_schema(swarm: GatewaySwarm) -> None:
    schema = {"title": "person", "type": "object", "properties": {"name": {"type": "string", "enum": ["Ada", "Zoë"]}},
              "required": ["name"], "additionalProperties": False}  # fmt: skip
    found = model(swarm, max_tokens=60).with_structured_output(schema, method="json_schema").invoke("who?")
    assert found in ({"name": "Ada"}, {"name": "Zoë"})


def test_what_is_not_supported_is_an_error_with_its_name(swarm: GatewaySwarm) -> None:
    with pytest.raises(BadRequestError, match="service_tier"):
        model(swarm, service_tier="flex").invoke("hi")
