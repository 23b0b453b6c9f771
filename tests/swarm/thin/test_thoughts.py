"""Thoughts are told from text, however an answer is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.thin.channels import Thought
from swarm.thin.grammar.answer_form import ThoughtForm
from swarm.thin.thoughts import FORMS, MAX_BLANKS, ThoughtReader, form_behind, reading_of, thought_form
from tests.swarm.thin.test_text import Bytes

FORM, OTHER, SEED, COHERE, NORTH = FORMS
OPEN, OVER = replace(FORM, is_open=True), replace(FORM, is_over=True)
FAR = " " * (MAX_BLANKS + 1)


def parts(reader: ThoughtReader, pieces: list[str]) -> tuple[str, str]:
    """The thought and the text."""
    made = [*(one for piece in pieces for one in reader.feed(piece)), *reader.rest()]
    thoughts = [one.text for one in made if isinstance(one, Thought)]
    assert all(isinstance(one, Thought) for one in made[: len(thoughts)]), "the thought comes first"
    assert all(thoughts) and all(made)
    return "".join(thoughts), "".join(one for one in made if isinstance(one, str))


CASES = [
    (FORM, "<think>\nHm.\n</think>\n\nYes.\n", ("Hm.", "Yes.\n")),
    (FORM, " \n<think>Hm. </think> Yes.", ("Hm.", "Yes.")),
    (FORM, "<think>\n\n</think>\n\nYes.", ("", "Yes.")),
    (FORM, "Yes <think>no</think>", ("", "Yes <think>no</think>")),
    (FORM, "<think>a <think> b</think>c</think>", ("a <think> b", "c</think>")),
    (FORM, "<think>a </thin", ("a </thin", "")),
    (FORM, "<thi", ("", "<thi")),
    (FORM, " \n", ("", " \n")),
    (FORM, "", ("", "")),
    (FORM, " Yes", ("", " Yes")),
    (FORM, FAR + "<think>a</think>", ("", FAR + "<think>a</think>")),
    (FORM, f"<think>{FAR}a{FAR}{FAR}</think>{FAR}b", (f"a{FAR} ", "b")),
    (OPEN, "\nHm.</think>Yes.", ("Hm.", "Yes.")),
    (OPEN, "</think>Yes.", ("", "Yes.")),
    (OPEN, "Hm. <think> ", ("Hm. <think> ", "")),
    (OVER, "\n\nYes.\n", ("", "Yes.\n")),
    (OVER, "\n<think>Hm.</think>Yes.", ("Hm.", "Yes.")),
    (SEED, "<seed:think>a</think></seed:think>b", ("a</think>", "b")),
    (COHERE, "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|> b <|END_RESPONSE|>", ("a", "b ")),
    (COHERE, "<|START_RESPONSE|>b<|START|END_RESPONSE|>", ("", "b<|START|END_RESPONSE|>")),
    (COHERE, "<|START_THINKING|>a<|END_THINKING|><|START_RES", ("a", "<|START_RES")),
    (replace(COHERE, is_open=True), "a<|END_THINKING|> \n<|START_RESPONSE|>\nb", ("a", "b")),
    (NORTH, "<|START_THINKING|>a<|END_THINKING|><|START_TEXT|>b<|END_TEXT|>", ("a", "b")),
    (OTHER, "[THINK]a</think>[/THINK]b", ("a</think>", "b")),
]


@pytest.mark.parametrize(("form", "text", "expected"), CASES, ids=str)
def test_a_thought_is_what_stands_between_the_marks_at_the_beginning(
    form: ThoughtForm, text: str, expected: tuple[str, str]
) -> None:
    assert parts(ThoughtReader(form), [text]) == expected


PIECES = st.lists(st.sampled_from([*"<think>/ \nx", "<think>", "</think>", " " * 40]), max_size=20)


@given(st.sampled_from([FORM, OPEN, OVER]), PIECES | st.sampled_from([list(text) for _, text, _ in CASES]))
def test_it_does_not_matter_where_text_is_cut(form: ThoughtForm, pieces: list[str]) -> None:
    assert parts(ThoughtReader(form), pieces) == parts(ThoughtReader(form), ["".join(pieces)])


MARKS = ["<|START_THINKING|>", "<|END_THINKING|>", *COHERE.around]


@given(st.booleans(), st.lists(st.sampled_from([*"<|START_\n x", *MARKS, MARKS[0][:6]]), max_size=20))
def test_so_it_is_with_marks_around_the_text(is_open: bool, pieces: list[str]) -> None:
    form, whole = replace(COHERE, is_open=is_open), "".join(pieces)
    assert parts(ThoughtReader(form), pieces) == parts(ThoughtReader(form), [whole]) == parts(ThoughtReader(form), list(whole))


@given(st.sampled_from([FORM, OPEN, OVER]), PIECES)
def test_little_is_held_back(form: ThoughtForm, pieces: list[str]) -> None:
    reader, said = ThoughtReader(form), ""
    for piece in pieces:
        said += "".join(one.text if isinstance(one, Thought) else one for one in reader.feed(piece))
    rest = "".join(one.text if isinstance(one, Thought) else one for one in reader.rest())
    assert len(rest) <= MAX_BLANKS + len(FORM.end), said


def test_a_template_says_whether_a_model_thinks_and_a_prompt_whether_it_has_begun() -> None:
    assert thought_form("{{ content.split('</think>')[-1] }}") == FORM and thought_form("[THINK][/THINK]") == OTHER
    assert thought_form("<|END_THINKING|><|START_TEXT|><|END_TEXT|>") == NORTH and thought_form("<|END_THINKING|>") is None
    assert thought_form("{{ messages }}") is None and thought_form("<|channel|><|message|></think>") is None
    assert form_behind("a<think>\n", FORM) == OPEN and form_behind("<think>a", FORM) == FORM
    assert form_behind("<think>\n\n</think>\n\n", FORM) == OVER
    assert reading_of(Bytes(), "{{ messages }}") is None  # type: ignore[arg-type]
