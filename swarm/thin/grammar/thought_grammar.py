"""The grammar of a thought before an answer.

Rules of llguidance's Lark, as `call_grammar.py` puts them together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from swarm.thin.grammar.answer_form import ThoughtForm
from swarm.thin.grammar.marks import ANY, literal, token

MAX_BLANKS = 4
"""Letters of white space between the marks and what stands beside them."""


def thought_lines(form: ThoughtForm, added: Mapping[str, int], ends: frozenset[int]) -> list[str]:
    """Rules that make `thought`: from the first mark to the second, which has to come. Between them may be anything else, also marks of
    calls. added: the tokens that are no pieces of words, by their texts. ends: tokens that end an answer."""
    if form.behind:
        return _message_lines(form, added)
    blanks = rf"/[ \n]{{0,{MAX_BLANKS}}}/"
    own = {mark: added[mark] for mark in (form.begin, form.end) if mark in added}
    begin = "" if form.is_open else f"{blanks} {literal(form.begin, own)} "
    others = sorted(set(added.values()) - set(own.values()) - ends)
    between = f"(THOUGHT {token(*others)})* " if others else ""
    if form.end in own:
        thought_end = f"thought_end: THOUGHT {token(own[form.end])}"
    else:
        thought_end = f"thought_end[lazy]: /{ANY}*/ {json.dumps(form.end)}"
    inside = f"THOUGHT: /{ANY}*/ & ~/{ANY}*{_escaped(form.end)}{ANY}*/"
    return [f"thought: {begin}{between}thought_end {blanks}", thought_end, inside]


def _message_lines(form: ThoughtForm, added: Mapping[str, int]) -> list[str]:
    """The same for a message in a channel: it has no other marks."""
    own = {mark: number for mark, number in added.items() if mark in form.begin + form.end + form.behind}
    end = literal(form.end + form.behind, own)
    if form.end in own:
        return [f"thought: {literal(form.begin, own)} THOUGHT {end}", f"THOUGHT: /{ANY}*/"]
    spelled = f"thought_end[lazy]: /{ANY}*/ {json.dumps(form.end)}"
    return [f"thought: {literal(form.begin, own)} thought_end {literal(form.behind, own)}", spelled]


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
