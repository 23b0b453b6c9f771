"""What chat templates take of a wish for more or less thinking."""

from __future__ import annotations

import pytest

from node.gateway.answers.effort import NONE, SOME, Effort, variables_of
from node.gateway.http.refusal import RefusedError

QWEN = "{{ '</think>' }}{%- if enable_thinking is defined and enable_thinking is false %}"
DEEPSEEK31 = "</think>{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
R1 = "{{ content.split('</think>')[-1] }}"
GPT_OSS = '<|channel|><|message|>{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}{%- endif %}'
NORTH = (
    "<|START_TEXT|><|END_TEXT|><|END_THINKING|>{%- set reasoning = reasoning if reasoning is not undefined else (false if "
    'reasoning_effort is defined and reasoning_effort | lower == "none" else true) -%}'
)
MISTRAL = "[/THINK]{% if reasoning_effort not in ['none', 'high'] %}"
NEMOTRON = "{%- set ns = namespace(enable_thinking=true) -%}{% if ns.enable_thinking %}</think>{% endif %}"
PROSE = "Thinking of thinking: '{{ message.enable_thinking }}' \"reasoning_effort\""


@pytest.mark.parametrize(
    ("template", "level", "expected"),
    [
        (QWEN, NONE, {"enable_thinking": False}),
        (QWEN, SOME, {"enable_thinking": True}),
        (QWEN, "low", {"enable_thinking": True}),
        (DEEPSEEK31, "high", {"thinking": True}),
        (DEEPSEEK31, NONE, {"thinking": False}),
        (NORTH, NONE, {"reasoning": False, "reasoning_effort": "none"}),
        (NORTH, SOME, {"reasoning": True}),
        (GPT_OSS, "high", {"reasoning_effort": "high"}),
        (GPT_OSS, SOME, {}),
        (GPT_OSS, NONE, "low, medium or high, got none"),
        (GPT_OSS, "xhigh", "low, medium or high, got xhigh"),
        (MISTRAL, NONE, {"reasoning_effort": "none"}),
        (MISTRAL, "max", "got max"),
        (QWEN + GPT_OSS, "low", {"enable_thinking": True, "reasoning_effort": "low"}),
        (NEMOTRON, NONE, "no variable that says how much"),
        ("{% if enable_thinking == false %}", NONE, {"enable_thinking": False}),
        (R1, SOME, {}),
        (R1, NONE, "no variable that says how much"),
        (R1, "low", "no variable that says how much"),
        (PROSE, NONE, {}),
        (PROSE, SOME, "does not say that it thinks"),
        (PROSE, "medium", "does not say that it thinks"),
        (None, NONE, {}),
        (None, "high", "does not say that it thinks"),
    ],
)
def test_a_template_takes_what_it_names(template: str | None, level: str, expected: dict[str, object] | str) -> None:
    effort = Effort(level=level, param="think")
    if isinstance(expected, dict):
        assert variables_of(effort, template) == expected
    else:
        with pytest.raises(RefusedError, match=expected) as refused:
            variables_of(effort, template)
        assert refused.value.refusal.param == "think"
        assert variables_of(Effort(level=level, param="think", is_wish=True), template) == {}


def test_without_a_wish_nothing_is_said() -> None:
    assert variables_of(None, QWEN) == {}
