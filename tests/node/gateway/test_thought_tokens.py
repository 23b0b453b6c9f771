"""Tokens of thoughts are counted, however an answer is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from node.gateway.tools.thoughts import ThoughtTokens
from swarm.thin.channels import ChannelReader
from swarm.thin.grammar.answer_form import ThoughtForm
from swarm.thin.thoughts import FORMS, ThoughtReader

FORM = FORMS[0]
OPEN = replace(FORM, is_open=True)
HEAD = ["<|channel|>", "analysis", "<|message|>"]
NEXT = ["<|start|>", "assistant", "<|channel|>", "final", "<|message|>"]

CASES = [
    (FORM, ["\n", "<think>", "Hm", ".", "</think>", "\n\n", "Yes"], 5),
    (FORM, ["<th", "ink>", "Hm", "</", "think", ">", "Yes"], 6),
    (FORM, ["<th", "e", "<think>"], 0),
    (FORM, ["<th"], 0),
    (FORM, ["<think>", "", "ö"], 3),
    (FORM, ["<think>Hm</think>Yes", "!"], 1),
    (FORM, ["<think>", "</think>", "<think>", "a"], 2),
    (OPEN, ["Hm", "</think>", "Yes"], 2),
    (OPEN, ["</think>", "Yes"], 1),
    (replace(FORM, is_over=True), ["Yes", "</think>"], 0),
    (None, [*HEAD, "Hm", ".", "<|end|>", *NEXT, "Yes", "<|return|>"], 6),
    (None, [*HEAD, "Hm", "<|end|>", "<|start|>assistant", *HEAD, "Hm"], 10),
    (None, [*NEXT, "Yes", "<|end|>", "<|start|>", *HEAD, "Hm"], 5),
    (None, [*HEAD, "<|end|>", "<|start|>", " to=functions.add", "<|message|>", "{}", "<|call|>"], 4),
    (None, HEAD[:2], 0),
]


@pytest.mark.parametrize(("form", "texts", "expected"), CASES)
def test_tokens_of_thoughts_and_of_their_marks_count(form: ThoughtForm | None, texts: Sequence[str], expected: int) -> None:
    tokens = ThoughtTokens(ChannelReader() if form is None else ThoughtReader(form))
    for text in texts:
        tokens.add(text)
    assert tokens.num == expected
