"""The grammar of an answer that may call tools.

In llguidance's form of Lark, with the marks of the model's own template, so that what comes is what the model was trained to write, and
what `node/gateway/tools/tool_calls.py` reads.
Source: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from protocols.errors import ModelNotSupportedError
from swarm.thin.grammar.answer_form import AnswerForm, CallForm, CallRules, OfferedCall, ThoughtForm
from swarm.thin.grammar.layout_grammar import LayoutRules
from swarm.thin.grammar.marks import ANY, json_rule, literal, token
from swarm.thin.grammar.python_grammar import python_lines
from swarm.thin.grammar.thought_grammar import thought_lines


def lark(form: AnswerForm, added: Mapping[str, int], special: frozenset[int], ends: Iterable[int]) -> str:
    """The grammar.

    added: the tokens that are no pieces of words, by their texts. special: those of them that are left out of the text of an answer.
    ends: tokens that end it. ModelNotSupportedError if a mark of calls is left out of the text, ValueError if a schema is no JSON.
    """
    rules = form.calls
    thought = [] if form.thought is None else thought_lines(form.thought, added, frozenset(ends))
    start = "answer" if form.thought is None else "thought answer" if form.thought.is_open else "thought? answer"
    lines = ["%llguidance {}", f"start: {start}", *thought]
    if rules is None:
        return "\n".join([*lines, f"answer: {_said(form, added)}"]) + "\n"
    of_calls = (rules.form.begin, rules.form.end, rules.form.mark, *rules.form.marks, *rules.form.around)
    marks = [text for text in of_calls if text in added]
    of_thought = (form.thought.begin, form.thought.end) if form.thought else ()
    others = sorted(set(added.values()) - {added[text] for text in (*marks, *of_thought) if text in added} - set(ends))
    laid_out = rules.form.layout is not None
    lines += LayoutRules(rules, added).lines if laid_out else _calls(rules, added, special)
    if rules.is_forced:
        lines += ["answer: calls"]
    elif form.schema is not None:
        lines += [f"answer: calls | {_said(form, added)}"]
    elif rules.form.is_channels:
        lines += _channels(rules, added)
    elif rules.form.end or laid_out:
        lines += _around(rules, added, others)
    else:
        lines += _instead(rules, others, form.thought)
    return "\n".join(lines) + "\n"


def _said(form: AnswerForm, added: Mapping[str, int]) -> str:
    """An answer that is JSON of a schema."""
    assert form.schema is not None
    return f"{literal(form.lead, added)} %json {_json(form.schema)}"


def _channels(rules: CallRules, added: Mapping[str, int]) -> list[str]:
    """Thoughts and remarks, then text or a call; each is a message."""
    if missing := [mark for mark in ("<|start|>", "<|channel|>", "<|message|>", "<|end|>") if mark not in added]:
        raise ModelNotSupportedError(f"this model's tokenizer has no token {missing[0]}; its calls cannot be told from text")
    channel, message, next_one = (literal(one, added) for one in ("<|channel|>", "<|message|>", "<|end|><|start|>assistant"))
    return [
        "answer: message* (last | calls)",
        f'message: {channel} ("analysis" | "commentary") {message} TEXT {next_one}',
        f'last: {channel} ("final" | "commentary") {message} TEXT',
        f"TEXT: /{ANY}*/",
    ]


def _calls(rules: CallRules, added: Mapping[str, int], special: frozenset[int]) -> list[str]:
    """`calls`, and what it consists of."""
    form = rules.form
    lines = [f"one: {' | '.join(f'tool_{number}' for number in range(len(rules.tools)))}"]
    if form.is_python:
        lines += python_lines(rules.tools)
    else:
        lines += [f"tool_{number}: {_tool(tool, form)}" for number, tool in enumerate(rules.tools)]
    if not form.end:
        lead = f"{token(added[form.mark])} " if form.mark in added else ""
        more = "" if rules.is_single else ' (", " one)*'
        blank = "" if form.is_python else '" "? '
        before, behind = [f"{token(added[mark])}?" if mark in added else "" for mark in form.around or ("", "")]
        calls = f'{blank}"[" one{more} "]"' if form.begin == "[" else "one"
        return [*lines, f"calls: {lead}{before} {calls} {behind}"]
    for text in (form.begin, form.end):
        if added.get(text) in special and text not in form.marks:
            raise ModelNotSupportedError(f"this model's tokenizer leaves {text} out of texts; its calls cannot be told from text")
    lines += ["call: begin body", f"begin: {_mark(form.begin, added)}"]
    if form.is_section:
        more = "" if rules.is_single else ' ("," gap one)*'
        return [*lines, f'body: "[" gap one{more} gap "]" {_mark(form.end, added)}', r"gap: /[ \n]{0,8}/", "calls: call"]
    lines += [f'body: "\\n" one "\\n" {_mark(form.end, added)}']
    return [*lines, "calls: call" + ("" if rules.is_single else ' ("\\n" call)*')]


def _around(rules: CallRules, added: Mapping[str, int], others: list[int]) -> list[str]:
    """Text before, between and behind calls. It does not have the mark of a call, also if that is spelled out."""
    begin = rules.form.begin
    as_token = [f"TEXT {token(added[begin])}"] if begin in added else []
    return [
        _start(rules),
        f"said: ({' | '.join(['spelled', *as_token])}) body",
        f"spelled[lazy]: TEXT {json.dumps(begin)}",
        f"other: TEXT {token(*others)}" if others else "other: TEXT",
        f"TEXT: /{ANY}*/",
    ]


def _start(rules: CallRules) -> str:
    if not rules.form.end:  # nothing follows calls
        return "answer: other* (TEXT | said)"
    return "answer: other* (said other*)? TEXT" if rules.is_single else "answer: (said | other)* TEXT"


def _instead(rules: CallRules, others: list[int], thought: ThoughtForm | None) -> list[str]:
    """Calls, or text that does not begin like them, or like a thought: calls may come behind it."""
    other = f"other: {token(*others)}" if others else ""
    lead, rest = ("other* ", "(other | REST)*") if others else ("", "REST?")
    begin = re.escape(rules.form.firsts + (thought.begin[0] if thought else ""))
    return ["answer: calls | text", f"text: {lead}(FIRST {rest})?", other, rf"FIRST: /\s*[^\s{begin}]{ANY}*/", f"REST: /{ANY}+/"]


def _tool(tool: OfferedCall, form: CallForm) -> str:
    first = f'{{{json.dumps(form.number)}: "'
    number = f"{json.dumps(first)} /[0-9]{{1,3}}/ " if form.number else ""
    lead = '", ' if form.number else "{"
    head = f"{lead}{json.dumps(form.name)}: {json.dumps(tool.name)}, {json.dumps(form.key)}: "
    return f'{number}{json.dumps(head)} %json {_json(tool.schema)} "}}"'


def _json(schema: str) -> str:
    """ValueError if it is no object in JSON."""
    found = json.loads(schema)
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return json_rule(found)


def _mark(text: str, added: Mapping[str, int]) -> str:
    return token(added[text]) if text in added else json.dumps(text)
