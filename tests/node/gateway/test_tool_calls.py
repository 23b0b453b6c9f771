"""Calls of tools are found in each family's form.

However the text is cut; and what is no call stays text.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.tool_calls import CallFinder, ToolCall, form_of

NAMES = {"add", "get-weather"}
TEMPLATES = {
    "qwen": "{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call></tool_call>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "llama": "{{ tools }}<|python_tag|>",
}
CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, "</x>"]}}'
OTHER = '{"name": "get-weather", "parameters": {"city": "Zürich"}}'


def found(family: str, pieces: list[str]) -> list[str | tuple[str, dict[str, object]]]:
    """Texts that follow each other are one."""
    form = form_of(TEMPLATES[family])
    assert form is not None
    finder, made = CallFinder(form, NAMES), list[str | tuple[str, dict[str, object]]]()
    for one in [*(one for piece in pieces for one in finder.feed(piece)), *finder.rest()]:
        if isinstance(one, ToolCall):
            assert json.loads(one.text) == one.arguments and len(one.number) == 9 and one.number.isalnum()
            made.append((one.name, dict(one.arguments)))
        elif made and isinstance(made[-1], str):
            made[-1] += one
        else:
            made.append(one)
    return made


ADD = ("add", {"a": 1, "b": [2, "</x>"]})
WEATHER = ("get-weather", {"city": "Zürich"})
CASES: list[tuple[str, str, list[object]]] = [
    ("qwen", "hello", ["hello"]),
    ("qwen", f"<tool_call>\n{CALL}\n</tool_call>", [ADD]),
    ("qwen", f"Let me see.<tool_call>{CALL}</tool_call>\n<tool_call>{OTHER}</tool_call>", ["Let me see.", ADD, "\n", WEATHER]),
    ("qwen", f"a <tool_cal b<tool_call>{CALL}</tool_call><", ["a <tool_cal b", ADD, "<"]),
    ("qwen", "<tool_call>{no JSON}</tool_call>!", ["<tool_call>{no JSON}</tool_call>!"]),
    (
        "qwen",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        ['<tool_call>{"name": "rm", "arguments": {}}</tool_call>'],
    ),
    ("qwen", f"<tool_call>{CALL}", [f"<tool_call>{CALL}"]),
    ("qwen", '<tool_call>{"name": "add"}</tool_call>', [("add", {})]),
    (
        "qwen",
        '<tool_call>{"name": ["add"], "arguments": 3}</tool_call>',
        ['<tool_call>{"name": ["add"], "arguments": 3}</tool_call>'],
    ),
    ("mistral", f" [{CALL}, {OTHER}]", [ADD, WEATHER]),
    ("mistral", f"Well: [{CALL}]", [f"Well: [{CALL}]"]),
    ("mistral", f"[{CALL}, 3]", [f"[{CALL}, 3]"]),
    ("mistral", "[]", ["[]"]),
    ("llama", OTHER, [WEATHER]),
    ("llama", f"{OTHER} it is", [f"{OTHER} it is"]),
    ("llama", "{" * 100_000, ["{" * 100_000]),
    ("llama", "", []),
    ("llama", '{"name": "add", "parameters": {"a": NaN}}', ['{"name": "add", "parameters": {"a": NaN}}']),
]


@pytest.mark.parametrize(("family", "text", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_calls_are_found(family: str, text: str, expected: list[object]) -> None:
    assert found(family, [text]) == expected


@given(st.sampled_from([case for case in CASES if len(case[1]) < 1000]), st.data())
def test_it_does_not_matter_where_text_is_cut(case: tuple[str, str, list[object]], data: st.DataObject) -> None:
    family, text, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert found(family, pieces) == expected


def test_text_that_cannot_be_a_call_is_not_held_back() -> None:
    form = form_of(TEMPLATES["qwen"])
    assert form is not None
    finder = CallFinder(form, NAMES)
    assert [list(finder.feed(piece)) for piece in ("hello", " <too", "l")] == [["hello"], [" "], []]
    assert list(finder.feed("s>")) == ["<tools>"]


@pytest.mark.parametrize("marks", ["", "<tool_call><function=add><parameter=a>", "[TOOL_CALLS]add[ARGS]"])
def test_a_template_of_another_family_has_no_form(marks: str) -> None:
    assert form_of("{{ messages }}{{ tools }}" + marks) is None
