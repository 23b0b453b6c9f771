"""JSON schemas of clients that want to cost others something."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import ModelNotSupportedError
from swarm.thin.constraining import Constraining
from swarm.thin.grammar.answer_form import AnswerForm, CallForm, CallRules, OfferedCall
from tests.families import add_byte_tokenizer, make_checkpoint

HONEST = json.dumps({"enum": ["a", "bc"]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = make_checkpoint("llama", tmp_path_factory.mktemp("model") / "tiny")
    add_byte_tokenizer(checkpoint)
    return checkpoint


@pytest.fixture
def constraining(folder: Path) -> Iterator[Constraining]:
    made = Constraining("tiny", folder, 256, [2])
    yield made
    made.close()


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


SCHEMAS: dict[str, str] = {
    "no JSON": "{",
    "no schema": "[1]",
    "a huge pattern": json.dumps({"type": "string", "pattern": "((a{1,999}){1,999}){1,999}"}),
    "many alternatives": json.dumps({"type": "string", "pattern": "|".join(f"(.*x{{{number}}}y.*)" for number in range(1, 400))}),
    "deep": json.dumps(nested(14)),
    "a circle": json.dumps({"$ref": "#"}),
    "a reference to a file": json.dumps({"$ref": "file:///etc/passwd"}),
    "deeper than the stack": '{"items":' * 20_000 + "{}" + "}" * 20_000,
}


def of_text(schema: str) -> AnswerForm:
    return AnswerForm(schema=schema)


def of_arguments(schema: str) -> AnswerForm:
    """Of a tool that must be called."""
    tools = (OfferedCall(name="a", schema=schema),)
    return AnswerForm(calls=CallRules(form=CallForm(begin="{"), tools=tools, is_forced=True))


async def tokens(constraining: Constraining, form: AnswerForm, most: int = 60) -> list[int]:
    """The first allowed token each time, up to an end token."""
    found: list[int] = []
    async with constraining.constraint(form) as constraint:
        while len(found) < most:
            mask = int.from_bytes(await constraint.mask(), "little")
            token = (mask & -mask).bit_length() - 1
            found.append(token)
            if token == 2:
                break
            constraint.accept(token)
    return found


@pytest.mark.parametrize("form_of", [of_text, of_arguments])
@pytest.mark.parametrize("name", SCHEMAS)
async def test_a_schema_is_kept_to_or_refused_in_one_line_and_others_go_on(
    constraining: Constraining, name: str, form_of: Callable[[str], AnswerForm]
) -> None:
    async with constraining.constraint(of_text(HONEST)) as honest:
        before = await honest.mask()
        try:
            print(await tokens(constraining, form_of(SCHEMAS[name])))
        except ModelNotSupportedError as error:
            print(error)
            assert "\n" not in str(error) and len(str(error)) < 700
        assert await honest.mask() == before, "an answer that is under way"
    assert (await tokens(constraining, of_text(HONEST)))[-1] == 2
