"""Answers keep to a JSON schema, also those of random weights."""

from __future__ import annotations

import json
from typing import Any

import ollama
import pytest
from openai import BadRequestError

from tests.node.gateway.processes.conftest import LIMIT_S, GatewaySwarm

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "enum": ["Ada", "Grace", "Zoë"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
USER = {"role": "user", "content": "who?"}
FEW = {"num_predict": 80}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn from the largest": {"temperature": 1.5, "extra_body": {"top_k": 20}},
    "drawn from all": {"temperature": 1.5},
    "with penalties": {"temperature": 0, "frequency_penalty": 1.0, "presence_penalty": -1.0},
    "with scores": {"temperature": 0, "logprobs": True, "top_logprobs": 2},
}


def asked(swarm: GatewaySwarm, schema: dict[str, Any], **fields: Any) -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    messages = [{"role": "user", "content": "who?"}]
    return swarm.client.chat.completions.create(
        model="tiny", messages=messages, **{"response_format": form, "max_tokens": 80, **fields}
    )


def check(text: str) -> None:
    found = json.loads(text)
    assert list(found) == ["name", "age", "tags"] and found["name"] in PERSON["properties"]["name"]["enum"]  # type: ignore[index]
    assert 0 <= found["age"] <= 150 and len(found["tags"]) <= 3 and all(type(tag) is bool for tag in found["tags"])


@pytest.mark.parametrize("name", SAMPLINGS)
def test_an_answer_of_random_weights_is_valid(swarm: GatewaySwarm, name: str) -> None:
    made = asked(swarm, PERSON, n=4, seed=7, **SAMPLINGS[name])
    for choice in made.choices:
        assert choice.finish_reason == "stop"
        check(choice.message.content)


def test_a_stream_is_valid_too_and_its_parts_are_the_whole(swarm: GatewaySwarm) -> None:
    chunks = list(asked(swarm, PERSON, seed=3, temperature=1.2, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    check(text)
    assert text == asked(swarm, PERSON, seed=3, temperature=1.2).choices[0].message.content


def test_any_object_is_one(swarm: GatewaySwarm) -> None:
    made = asked(swarm, {}, response_format={"type": "json_object"}, temperature=0, max_tokens=200)
    (choice,) = made.choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.startswith("{"), "it has no end within so many tokens"


def test_ollamas_client_gets_json(swarm: GatewaySwarm) -> None:
    client = ollama.Client(host=swarm.url.removesuffix("/v1"), timeout=LIMIT_S)
    for made in (
        client.chat("tiny", [USER], format=PERSON, options=FEW),
        client.generate("tiny", "who?", format=PERSON, options=FEW),
    ):
        check(made.message.content or "" if isinstance(made, ollama.ChatResponse) else made.response)
    assert (client.generate("tiny", "who?", format="json", options=FEW).response).startswith("{")


def test_a_response_is_json(swarm: GatewaySwarm) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    made = swarm.client.responses.create(model="tiny", input="who?", text=form, max_output_tokens=80)
    check(made.output_text)
    assert made.text is not None and made.text.model_dump(by_alias=True, exclude_unset=True)["format"]["schema"] == PERSON


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "Invalid type: nonsense"),
        ({"type": "string", "pattern": "("}, "the JSON schema"),
        ({"type": "string", "enum": ["x" * 100_000]}, "at most 100000 are taken"),
    ],
    ids=["no type", "no pattern", "too long"],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(swarm: GatewaySwarm, schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        asked(swarm, schema)
    check(asked(swarm, PERSON, temperature=0).choices[0].message.content)
