"""Calls of tools are found in each family's form.

However the text is cut; and what is no call stays text.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gateway.tools.call_forms import form_of
from node.gateway.tools.channels import ChannelFinder
from node.gateway.tools.thoughts import finder_of
from node.gateway.tools.tool_calls import CallFinder, ToolCall
from swarm.thin.channels import Thought
from swarm.thin.thoughts import FORMS

TOOLS: dict[str, dict[str, object]] = {
    "add": {"properties": {"a": {"type": "integer"}, "note": {"type": "string"}}},
    "get-weather": {"properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"enum": ["Zürich", "1"]}}},
}
TEMPLATES = {
    "qwen": "{% for t in tools %}{{ t | tojson }}{% endfor %}<tool_call></tool_call>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "llama": "{{ tools }}<|python_tag|>",
    "llama4": "{{ tools }}<|header_start|>ipython<|header_end|>",
    "python": "{{ tools }}Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]",
    "gpt-oss": "{{ tools }}<|channel|>analysis<|message|>",
    "coder": "{{ tools }}<tool_call><function=<parameter=",
    "glm": "{{ tools }}<tool_call>{name}\n<arg_key>{key}</arg_key>\n<arg_value>",
    "glm47": "{{ tools }}<tool_call>{name}<arg_key>{key}</arg_key><arg_value>",
    "deepseek": "{{ tools }}<｜tool▁calls▁begin｜>\n```json",
    "deepseek31": "{{ tools }}<｜tool▁calls▁begin｜>",
    "cohere": "{{ tools }}<|START_ACTION|>",
    "kimi": "{{ tools }}<|tool_calls_section_begin|>",
    "mistral11": "{{ tools }}[TOOL_CALLS][CALL_ID][ARGS]",
    "mistral13": "{{ tools }}[TOOL_CALLS][ARGS]",
}
THINKING = ", thinking"
CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, "</x>"]}}'
OTHER = '{"name": "get-weather", "parameters": {"city": "Zürich"}}'


def found(family: str, pieces: list[str]) -> list[str | tuple[str, dict[str, object]]]:
    """Texts that follow each other are one, and so are thoughts."""
    template = TEMPLATES[family.removesuffix(THINKING)]
    form, thought = form_of(template), FORMS[0] if family.endswith(THINKING) else None
    assert form is not None
    finder, made = finder_of(form, thought, TOOLS), list[str | tuple[str, dict[str, object]]]()
    assert finder is not None
    for one in [*(one for piece in pieces for one in finder.feed(piece)), *finder.rest()]:
        if isinstance(one, ToolCall):
            assert json.loads(one.text) == one.arguments and len(one.number) == 9 and one.number.isalnum()
            made.append((one.name, dict(one.arguments)))
        elif isinstance(one, Thought):
            before = made.pop()[1]["text"] if made and made[-1][0] == "thought" else ""
            made.append(("thought", {"text": f"{before}{one.text}"}))
        elif made and isinstance(made[-1], str):
            made[-1] += one
        elif one:
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


ACTION = '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1, "b": [2, "</x>"]}}'
CASES += [
    ("cohere", f"{ACTION}\n]<|END_ACTION|>", [ADD]),
    ("cohere", f'{ACTION},{{"tool_name": "get-weather", "parameters": {{"city": "Zürich"}}}}]<|END_ACTION|>', [ADD, WEATHER]),
    ("cohere", f"Plan: {ACTION}]", [f"Plan: {ACTION}]"]),
    ("cohere", '<|START_ACTION|>[{"name": "add"}]<|END_ACTION|>', ['<|START_ACTION|>[{"name": "add"}]<|END_ACTION|>']),
]
CODE = "if a < 1:\n    return </x>\n"
NOTED = ("add", {"a": 1, "note": CODE})
ONE = ("add", {"a": 1})
NO_CITY = ("get-weather", {})


def coder(name: str, **arguments: str) -> str:
    values = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"


def glm(name: str, line: str = "\n", **arguments: str) -> str:
    values = "".join(f"<arg_key>{key}</arg_key>{line}<arg_value>{value}</arg_value>{line}" for key, value in arguments.items())
    return f"<tool_call>{name}{line}{values}</tool_call>"


def deepseek(*calls: tuple[str, str], line: str = "\n") -> str:
    before, open_, close = ("function<｜tool▁sep｜>", "\n```json\n", "\n```") if line else ("", "<｜tool▁sep｜>", "")
    every = line.join(f"<｜tool▁call▁begin｜>{before}{name}{open_}{text}{close}<｜tool▁call▁end｜>" for name, text in calls)
    return f"<｜tool▁calls▁begin｜>{every}<｜tool▁calls▁end｜>"


def kimi(*calls: tuple[str, str]) -> str:
    every = "".join(
        f"<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{text}<|tool_call_end|>"
        for number, (name, text) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{every}<|tool_calls_section_end|>"


BOTH = (("add", '{"a": 1}'), ("get-weather", "{}"))
NO_CALLS: list[tuple[str, str]] = [
    ("coder", f"<tool_call>{CALL}</tool_call>"),
    ("coder", coder("rm")),
    ("coder", "<tool_call><function=add><parameter=a></function></tool_call>"),
    ("coder", coder("add", a="1").removesuffix("</tool_call>")),
    ("glm", glm("rm", a="1")),
    ("deepseek", deepseek(("add", "[]"))),
    ("deepseek", deepseek(("add", '{"a": NaN}'))),
    ("mistral13", '[TOOL_CALLS]add[ARGS]{"a": 1} and'),
    ("mistral13", '[TOOL_CALLS]add[ARGS]{"a": 1'),
    ("mistral13", "[TOOL_CALLS]" + " " * 100_000 + "a"),
    ("mistral13", '[TOOL_CALLS]add[ARGS]{"a": ' + "[" * 100_000),
    ("coder", "<tool_call><function=add" + "\n" * 100_000 + "</tool_call>"),
]
CASES += [(family, text, [text]) for family, text in NO_CALLS]
CASES += [
    ("coder", f"Hm.{coder('add', a='1', note=CODE)}", ["Hm.", NOTED]),
    ("coder", coder("get-weather") + "\n" + coder("add", a="1", note=CODE), [NO_CITY, "\n", NOTED]),
    ("coder", coder("get-weather", city="1").replace("\n", ""), [("get-weather", {"city": "1"})]),
    ("coder", coder("add", a="[1, 2"), [("add", {"a": "[1, 2"})]),
    ("coder", coder("add", a="True"), [("add", {"a": True})]),
    ("glm", glm("add", a="7", note="7"), [("add", {"a": 7, "note": "7"})]),
    ("glm", glm("get-weather"), [NO_CITY]),
    ("glm47", glm("add", "", a='{"x": null}'), [("add", {"a": {"x": None}})]),
    ("deepseek", deepseek(*BOTH), [ONE, NO_CITY]),
    ("deepseek31", "Yes" + deepseek(*BOTH, line=""), ["Yes", ONE, NO_CITY]),
    ("kimi", kimi(*BOTH), [ONE, NO_CITY]),
    ("mistral11", '[TOOL_CALLS]add[CALL_ID]abcDEF123[ARGS]{"a": 1}', [ONE]),
    ("mistral13", 'So.[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]get-weather[ARGS]{}', ["So.", ONE, NO_CITY]),
    ("mistral13", '[TOOL_CALLS]add[ARGS]{"note": "[TOOL_CALLS]"}', [("add", {"note": "[TOOL_CALLS]"})]),
]
DEEP = "[" * 64 + "]" * 64
NO_PYTHON = [
    "[]", "[1]", "[add]", "[add(1)]", "[add(a=b)]", "[add(a=f())]", "[add(a=1+1)]", "[add(a=1, a=2)]", "[add(a=1) add()]", "[add(a=1)",
    "[add(a=1)] and", "[rm()]", "[add(), rm()]", "[add(**{'a': 1})]", "[add(a=(1, 2))]", "[add(a=lambda: 1)]", "[add(a='x)]",
    "[add(a={1: 2})]", "[add(a=inf)]", "[add(a='\\ud83d')]", f"[add(a=[{DEEP}])]", "[" * 1_000_000, "[add(a=" + "[" * 1_000_000,
    "[add(a=" + "-" * 100_000 + "1)]", f"[add(a={'9' * 5000})]", "[add(a='" + "\\" * 100_000, "Well: [add(a=1)]",
]  # fmt: skip
CASES += [(family, text, [text]) for text in NO_PYTHON for family in ("python", "llama4")]
CASES += [
    ("python", "[add(a=1, b=[2, '</x>']), get-weather(city=\"Zürich\")]", [ADD, WEATHER]),
    ("python", " [ get-weather ( ) , ]\n", [NO_CITY]),
    ("python", "[add(a=[True, false, None, null, -1.5e3, .5, 1_000], b={'c': {}})]",
     [("add", {"a": [True, False, None, None, -1500.0, 0.5, 1000], "b": {"c": {}}})]),
    ("python", r"""[add(a="\"\u00fc\ud83d\ude00\/", b='it\'s\x41\d', c='')]""", [("add", {"a": "\"ü😀/", "b": "it'sA\\d", "c": ""})]),
    ("python", "[add(a=1e999)]", [("add", {"a": 1.7976931348623157e308})]),
    ("python", "hello", ["hello"]),
    ("llama", "[add(a=1, b=[2, '</x>'])]", [ADD]),
    ("llama4", OTHER, [WEATHER]),
    ("llama4", f"[{CALL}]", [f"[{CALL}]"]),
]  # fmt: skip


def said(channel: str, text: str, end: str = "<|end|><|start|>assistant") -> str:
    return f"<|channel|>{channel}<|message|>{text}{end}"


CALLS_ADD = "commentary to=functions.add <|constrain|>json"
THINKS = ("thought", {"text": "Hm, <x>."})
NO_MESSAGES = [
    said("commentary to=functions.rm <|constrain|>json", "{}", ""), said(CALLS_ADD, '{"a": 1', ""), said(CALLS_ADD, "[]", ""),
    said("commentary to=python", "print(1)", ""), said(CALLS_ADD, '{"a": ' + DEEP + "}", ""), said(CALLS_ADD, "[" * 1_000_000, ""),
    "<" * 1000, "<|end|>", " to=" + "x" * 1000, "<|channel|>" * 1000,
]  # fmt: skip
CASES += [("gpt-oss", text, [text]) for text in NO_MESSAGES]
CASES += [
    ("gpt-oss", said("analysis", "Hm, <x>.") + said("final", "It is 1 < 2.", "<|return|>"), [THINKS, "It is 1 < 2."]),
    ("gpt-oss", said("analysis", "Hm, <x>.") + said(CALLS_ADD, '{"a": 1}', "<|call|>"), [THINKS, ONE]),
    ("gpt-oss", said("analysis", "Hm, <x>.") + said("commentary", "I add.") + said(CALLS_ADD, '{"a": 1}', ""), [THINKS, "I add.", ONE]),
    ("gpt-oss", ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', [ONE]),
    ("gpt-oss", said("commentary", "One.") + said("final", "Two.", ""), ["One.\nTwo."]),
    ("gpt-oss", said("analysis", "Hm, <x>.", ""), [THINKS]),
    ("gpt-oss", said("final", "a<|en", ""), ["a<|en"]),
    ("gpt-oss", said("final", "", "<|end|><|start|>assist"), []),
    ("gpt-oss", "<|channel|>fin", []),
    ("gpt-oss", "hello", ["hello"]),
    ("gpt-oss", "hello<|end|><|start|>assistant" + said("final", "you", ""), ["hello\nyou"]),
]  # fmt: skip


THINKS_TEXT = "<think>\nHm, <x>. {}\n</think>\n\n"
CASES += [
    (family + THINKING, THINKS_TEXT.format(text) + text, [("thought", {"text": f"Hm, <x>. {text.rstrip()}"}), *made])
    for family, text, made in CASES
    if len(text) < 1000 and text.strip() and made != [text] and family != "gpt-oss" and text == text.lstrip()
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
    finder = CallFinder(form, TOOLS)
    assert [list(finder.feed(piece)) for piece in ("hello", " <too", "l")] == [["hello"], [" "], []]
    assert list(finder.feed("s>")) == ["<tools>"]


def test_heads_without_messages_end() -> None:
    (text,) = found("gpt-oss", ["<|start|>" * 1000])
    assert isinstance(text, str) and set(text.split("\n")) == {"<|start|>"}


def test_messages_are_not_held_back() -> None:
    finder = ChannelFinder(TOOLS)
    pieces = ("<|channel|>ana", "lysis<|message|>Hm", " <|e", "nd|><|start|>assistant<|channel|>final<|message|>Yes", "!")
    made = [[one for one in finder.feed(piece) if one] for piece in pieces]
    assert made == [[], [Thought("Hm")], [Thought(" ")], ["Yes"], ["!"]]


@pytest.mark.parametrize("marks", ["", "<tool_call><function=add>"])
def test_a_template_of_another_family_has_no_form(marks: str) -> None:
    assert form_of("{{ messages }}{{ tools }}" + marks) is None
