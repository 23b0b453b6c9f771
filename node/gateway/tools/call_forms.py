"""The forms in which families of models write calls.

A chat template shows its family's marks. Sources: the templates themselves, and the parsers of vLLM
(https://github.com/vllm-project/vllm/tree/main/vllm/entrypoints/openai/tool_parsers) and SGLang.
"""

from __future__ import annotations

from dataclasses import replace

from swarm.thin import channels
from swarm.thin.grammar.answer_form import CallForm, Layout

_DEEPSEEK = CallForm(
    begin="<｜tool▁calls▁begin｜>", end="<｜tool▁calls▁end｜>", is_section=True,
    marks=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"),
    layout=Layout(open="<｜tool▁call▁begin｜>", between="<｜tool▁sep｜>", close="<｜tool▁call▁end｜>"),
)  # fmt: skip
_DEEPSEEK_FENCED = Layout(
    open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>", between="\n```json\n", close="\n```<｜tool▁call▁end｜>", separator="\n"
)
_LLAMA = CallForm(begin="{", key="parameters", or_python=True)
_LLAMA4 = ("<|python_start|>", "<|python_end|>")
_TAGGED = ("<tool_call>", "</tool_call>")
_GLM = (*_TAGGED, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

FORMS: tuple[tuple[tuple[str, ...], CallForm | None], ...] = (
    ((channels.CHANNEL_MARK, channels.BODY), CallForm(
        begin="", is_channels=True, marks=channels.MARKS,
        layout=Layout(open="<|channel|>commentary to=functions.", between=" <|constrain|>json<|message|>"),
    )),
    (("[func_name1(",), CallForm(begin="[", or_python=True, is_python=True, around=_LLAMA4)),
    (("<function=", "<parameter="), CallForm(
        begin="<tool_call>", end="</tool_call>", marks=_TAGGED,
        layout=Layout(open="\n<function=", between=">\n", key="<parameter=", value=">\n", end="\n</parameter>\n", close="</function>\n"),
    )),
    (("<arg_key>", "</arg_key><arg_value>"), CallForm(
        begin="<tool_call>", end="</tool_call>", marks=_GLM,
        layout=Layout(open="", between="", key="<arg_key>", value="</arg_key><arg_value>", end="</arg_value>"),
    )),
    (("<arg_key>",), CallForm(
        begin="<tool_call>", end="</tool_call>", marks=_GLM,
        layout=Layout(open="", between="\n", key="<arg_key>", value="</arg_key>\n<arg_value>", end="</arg_value>\n"),
    )),
    (("<｜tool▁calls▁begin｜>", "```json"), replace(_DEEPSEEK, layout=_DEEPSEEK_FENCED)),
    (("<｜tool▁calls▁begin｜>",), _DEEPSEEK),
    (("<|tool_calls_section_begin|>",), CallForm(
        begin="<|tool_calls_section_begin|>", end="<|tool_calls_section_end|>", is_section=True,
        marks=(
            "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
        layout=Layout(open="<|tool_call_begin|>functions.", between=":#<|tool_call_argument_begin|>", close="<|tool_call_end|>"),
    )),
    (("[TOOL_CALLS]", "[CALL_ID]"), CallForm(
        begin="[TOOL_CALLS]", marks=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        layout=Layout(open="", between="[CALL_ID]@[ARGS]", separator="[TOOL_CALLS]"),
    )),
    (("[TOOL_CALLS]", "[ARGS]"), CallForm(
        begin="[TOOL_CALLS]", marks=("[TOOL_CALLS]", "[ARGS]"), layout=Layout(open="", between="[ARGS]", separator="[TOOL_CALLS]"),
    )),
    (("<|START_ACTION|>",), CallForm(
        begin="<|START_ACTION|>", end="<|END_ACTION|>", is_section=True, marks=("<|START_ACTION|>", "<|END_ACTION|>"),
        name="tool_name", key="parameters", number="tool_call_id",
    )),
    (("<function=",), None),
    (("<tool_call>",), CallForm(begin="<tool_call>", end="</tool_call>")),
    (("[TOOL_CALLS]",), CallForm(begin="[", mark="[TOOL_CALLS]")),
    (("<|python_tag|>",), _LLAMA),
    (("ipython<|end_header_id|>",), _LLAMA),
    (("ipython<|header_end|>",), replace(_LLAMA, around=_LLAMA4)),
)  # fmt: skip
"""What a template has, and what that says; the first counts. gpt-oss; Llama and others, if they are asked for lists of calls in Python;
Qwen3-Coder; GLM-4.7, GLM-4.5; DeepSeek V3 and R1, V3.1; Kimi K2; Mistral from v11 on, from v13 on; Cohere from Command R7B on; none that is
known; Qwen and Hermes; older Mistrals, whose mark is no text; Llama 3.1, 3.2 and 4, which write lists in Python also if they are asked for
JSON."""


def form_of(template: str) -> CallForm | None:
    """None: calls of this family are not known here, and stay text."""
    return next((form for marks, form in FORMS if all(mark in template for mark in marks)), None)
